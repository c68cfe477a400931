//! The backend: its options, and what we publish.

use std::{num::NonZeroUsize, sync::Arc, thread};

use async_trait::async_trait;
use flannel_backend::{Paths, TableOptions, Uplink, UplinkFinder, warn_of_unknown_options};
use flannel_core::{
    Backend, BackendError, BackendReport, Family, Lease, LeaseAttrs, Network, NetworkConfig, Place,
};
#[cfg(any(test, feature = "testing"))]
use flannel_netlink::Namespace;
use flannel_tunnel::device::Device;
use ipnetwork::IpNetwork;

use crate::{
    KIND,
    bpf::Owner,
    config::{EngineChoice, KNOWN, Settings, SourceCheck},
    ebpf::Ebpf,
    engine::{EngineStats, Userspace},
    network::{Common, Engines, UdpNetwork},
    plan,
    self_test::{Masquerade, Plan, SelfTests},
    stats::Stats,
};

/// Carries packets in UDP, each as it is.
#[derive(Debug)]
pub struct Udp {
    settings: Settings,
    routes: TableOptions,
    finder: UplinkFinder,
    device: String,
    workers: usize,
    /// Our own port, if not the network's.
    port: Option<u16>,
    engine_stats: Arc<EngineStats>,
    paths: Paths,
    self_tests: Option<Arc<SelfTests>>,
}

impl Udp {
    /// The backend of the network in `config`, on the uplink that `finder` finds, with the device `flannel0` and a route in the
    /// main table.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] if one of the options Port, MTU, SourceCheck, Engine and PathMTUDiscovery is invalid.
    pub fn new(config: &NetworkConfig, finder: UplinkFinder) -> Result<Self, BackendError> {
        let options = config.backend().options();
        let routes = TableOptions::new(config);
        let settings = Settings::read(&options, &routes.networks)
            .map_err(|source| BackendError::Config { backend: KIND.into(), source })?;
        warn_of_unknown_options(KIND, &options, &KNOWN);
        let families = routes.networks.iter().map(|network| match network {
            IpNetwork::V4(_) => Family::Ipv4,
            IpNetwork::V6(_) => Family::Ipv6,
        });
        let self_test = Plan { families: families.collect(), masquerade: None, spoil: None };
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            settings,
            routes,
            finder,
            device: DEVICE.into(),
            workers: cores.min(MAX_WORKERS),
            port: None,
            engine_stats: Arc::default(),
            paths: Paths::default(),
            self_tests: Some(Arc::new(SelfTests::new(self_test))),
        })
    }

    /// The same with a device of another name. If somebody else has a device of that name and it ends in a number, the first free
    /// number is taken.
    #[must_use]
    pub fn with_device(mut self, name: impl Into<String>) -> Self {
        self.device = name.into();
        self
    }

    /// The same with another mark on its routes: a routing protocol number and a table. Our routes are told from others by them,
    /// and by lying inside of the network.
    #[must_use]
    pub fn with_mark(mut self, protocol: u8, table: u32) -> Self {
        (self.routes.protocol, self.routes.table) = (protocol, table);
        self
    }

    /// The same beside another backend of the node, or with the second mark.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.routes.at(place);
        self
    }

    /// The same with routes that drop packets to addresses of our own subnet that no pod has.
    #[must_use]
    pub fn with_blackholes(mut self) -> Self {
        self.routes.blackholes = true;
        self
    }

    /// The same with something that translates addresses in the self-test, which otherwise goes without.
    #[must_use]
    pub fn with_masquerade(self, masquerade: impl Masquerade) -> Self {
        self.with_self_test(|plan| plan.masquerade = Some(Arc::new(masquerade)))
    }

    /// The same with a self-test whose two namespaces are given to `spoil` before anything is sent.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_spoiled_self_test(self, spoil: fn(&Namespace, &Namespace)) -> Self {
        self.with_self_test(|plan| plan.spoil = Some(spoil))
    }

    /// The same for the nodes of a self-test.
    pub(crate) fn without_self_test(mut self) -> Self {
        self.self_tests = None;
        self
    }

    fn with_self_test(mut self, change: impl FnOnce(&mut Plan)) -> Self {
        if let Some(self_tests) = &self.self_tests {
            let mut plan = self_tests.plan().clone();
            change(&mut plan);
            self.self_tests = Some(Arc::new(SelfTests::new(plan)));
        }
        self
    }

    /// The same with what somebody finds out about the ways to peers: senders are told of those that take less than the network card.
    #[must_use]
    pub fn with_paths(mut self, paths: Paths) -> Self {
        self.paths = paths;
        self
    }

    /// The same on a port of this node's own, which is published. flannel's nodes do not look at that: they send to the port of
    /// the network.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The same with so many threads of the userspace engine. By default it is one for each core, at most 8.
    #[must_use]
    pub fn with_workers(mut self, workers: NonZeroUsize) -> Self {
        self.workers = workers.get();
        self
    }

    /// Starts the self-test now, on a thread that has the rights of the calling one, unless `Engine` is `userspace`. Otherwise it
    /// starts when the node is about to publish its lease. It needs `CAP_SYS_ADMIN`, permitted if not effective, which the node
    /// does not need afterwards.
    pub fn begin_self_test(&self) {
        if let (EngineChoice::Auto | EngineChoice::Ebpf, Some(self_tests)) =
            (self.settings.engine, &self.self_tests)
        {
            self_tests.begin();
        }
    }

    /// What carries packets, how, and what became of them.
    pub fn stats(&self) -> Stats {
        let mut stats = self.engine_stats.stats();
        stats.self_test = self.self_tests.as_ref().and_then(|self_tests| self_tests.ended());
        stats
    }

    /// Whether peers may leave it to our kernel to decapsulate.
    async fn uses_ebpf(&self) -> bool {
        match (self.settings.engine, &self.self_tests) {
            (EngineChoice::Ebpf, _) => true,
            (EngineChoice::Auto, Some(self_tests)) => {
                self_tests.outcome().await.is_ok() && !self.engine_stats.is_refused()
            }
            (EngineChoice::Auto | EngineChoice::Userspace, _) => false,
        }
    }
}

#[async_trait]
impl Backend for Udp {
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let Uplink { public_ip, public_ipv6, .. } = self.finder.find_for(previous).await?;
        let backend_data = plan::backend_data(self.port, self.uses_ebpf().await);
        // No type, as with flannel.
        Ok(LeaseAttrs { public_ip, public_ipv6, backend_data, ..LeaseAttrs::default() })
    }

    fn report(&self) -> BackendReport {
        self.stats().report()
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let uplink = self.finder.find_for(Some(lease)).await?;
        let watch = self.finder.watch(&uplink)?;
        let namespace = self.finder.namespace();
        let mut device = Device::new(
            KIND,
            namespace,
            &self.device,
            &self.routes.networks,
            self.settings.source_check != SourceCheck::None,
        );
        let name = device.name().await?;
        let port = self.port.unwrap_or(self.settings.port);
        let owner = Owner::new(&self.routes.networks, port, &name);
        let table = self.routes.open(namespace, vec![name]).await?;
        let common = Common { settings: self.settings, port, routes: self.routes.clone() };
        let engines = Engines {
            userspace: Userspace::new(namespace, self.workers),
            ebpf: Ebpf::new(namespace, self.settings.engine, owner, self.self_tests.clone()),
            engine_stats: Arc::clone(&self.engine_stats),
        };
        let paths = self.paths.watch();
        let network = UdpNetwork::new(common, watch, device, table, engines, paths);
        Ok(Box::new(network))
    }
}

/// flannel's.
const DEVICE: &str = "flannel0";
/// Each has buffers of 3 MB, and a tunnel that keeps more cores busy wants another backend.
const MAX_WORKERS: usize = 8;
