//! The backend: its options, its key, and what we publish.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use flannel_backend::{
    Paths, TableOptions, Uplink, UplinkFinder, ensure_guards, warn_of_unknown_options,
};
use flannel_core::{
    Backend, BackendConfig, BackendError, BackendReport, Family, Fields, Lease, LeaseAttrs,
    Network, NetworkConfig, Place,
};
use tokio::sync::OnceCell;

use crate::{
    KIND,
    config::{KNOWN, Settings, TunnelSpec},
    device::{Devices, Tunnel, public_key},
    lease_data,
    network::WireguardNetwork,
    userspace::EngineStats,
};

/// Carries packets in the kernel's WireGuard.
#[derive(Debug)]
pub struct Wireguard {
    shared: Arc<Shared>,
    finder: UplinkFinder,
    /// Set once the routes are there that refuse what no device takes, if those are wanted.
    guarded: OnceCell<()>,
}

/// What the backend and its network work on together.
#[derive(Debug)]
pub(crate) struct Shared {
    settings: Mutex<Settings>,
    pub(crate) routes: TableOptions,
    pub(crate) devices: tokio::sync::Mutex<Devices>,
    stats: Arc<EngineStats>,
    /// What is known of the paths to peers.
    pub(crate) paths: Paths,
}

impl Wireguard {
    /// The backend of the network in `config`, on the uplink that `finder` finds, with the private key in `key_file`, which is created
    /// when it is first needed. Where `config` names it `wireguard-2`, the key is in the file of that name with `-2` behind it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] if one of the options Engine, ListenPort, ListenPortV6, MTU, Mode, PSK and PersistentKeepaliveInterval is
    /// invalid.
    pub fn new(
        config: &NetworkConfig,
        finder: UplinkFinder,
        key_file: impl Into<PathBuf>,
    ) -> Result<Self, BackendError> {
        let options = config.backend().options();
        let settings = read(&options, families(config))?;
        warn_of_unknown_options(settings.instance.name(), &options, &KNOWN);
        let (routes, stats) = (TableOptions::new(config), Arc::<EngineStats>::default());
        let (namespace, key_file) =
            (finder.namespace(), settings.instance.key_file(key_file.into()));
        let (instance, stats_of) = (settings.instance, Arc::clone(&stats));
        let devices = Devices::new(namespace, &routes.networks, instance, key_file, stats_of);
        let shared = Shared {
            settings: settings.into(),
            routes,
            devices: devices.into(),
            stats,
            paths: Paths::default(),
        };
        Ok(Self { shared: Arc::new(shared), finder, guarded: OnceCell::new() })
    }

    /// The same with another mark on its routes: a routing protocol number and a table. Our routes are told from others by them,
    /// and by lying inside of the network.
    #[must_use]
    pub fn with_mark(mut self, protocol: u8, table: u32) -> Self {
        let routes = &mut self.not_yet_shared().routes;
        (routes.protocol, routes.table) = (protocol, table);
        self
    }

    /// The same beside another backend of the node, or with the second mark.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.not_yet_shared().routes.at(place);
        self
    }

    /// The same with what is known of the paths to peers: routes to peers whose path takes less say so. They follow what becomes known
    /// while the network runs.
    #[must_use]
    pub fn with_paths(mut self, paths: Paths) -> Self {
        self.not_yet_shared().paths = paths;
        self
    }

    /// The same with routes that drop packets to addresses of our own subnet that no pod has.
    #[must_use]
    pub fn with_blackholes(mut self) -> Self {
        self.not_yet_shared().routes.blackholes = true;
        self
    }

    /// The same with unreachable routes to the whole network, which count while there is no device: packets between pods never follow
    /// another route into the clear. Routes of other backends are removed when this one starts. A teardown leaves the unreachable routes
    /// there.
    #[must_use]
    pub fn with_required_encryption(mut self) -> Self {
        self.not_yet_shared().routes.guards = true;
        self
    }

    /// The same with a private key that goes with the devices when the network is [torn down](Network::teardown): the next one has a key
    /// that nobody knows.
    #[must_use]
    pub fn with_new_keys(mut self) -> Self {
        self.not_yet_shared().devices.get_mut().renews_key = true;
        self
    }

    fn not_yet_shared(&mut self) -> &mut Shared {
        Arc::get_mut(&mut self.shared)
            .expect("only networks share it, and they need a backend that is done")
    }

    async fn ensure_devices(
        &self,
        lease: Option<&Lease>,
    ) -> Result<(Uplink, Vec<Tunnel>), BackendError> {
        let TableOptions { networks, protocol, table, guards, .. } = &self.shared.routes;
        if *guards {
            // Before there is a device, and before what waits for an uplink. Later they are among what is kept in the table.
            let ensured = ensure_guards(self.finder.namespace(), networks, *protocol, *table);
            self.guarded.get_or_try_init(|| ensured).await?;
        }
        let uplink = self.finder.find_for(lease).await?;
        let mut devices = self.shared.devices.lock().await;
        let tunnels = devices.ensure(&self.shared.settings(), &uplink.interface).await?;
        Ok((uplink, tunnels))
    }
}

impl Shared {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes on with other options from the next sync on.
    pub(crate) fn reconfigure(&self, options: &BackendConfig) -> Result<(), BackendError> {
        let running = self.settings();
        let wanted = read(&options.options(), running.families.clone())?;
        let adopted = running.adopt(wanted).map_err(|fixed| BackendError::Unsupported {
            backend: running.instance.name().into(),
            reason: format!("{fixed} are read when it starts"),
        })?;
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = adopted;
        Ok(())
    }
}

#[async_trait]
impl Backend for Wireguard {
    /// Creates the devices, because the kernel derives the public key, which is published.
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let (uplink, tunnels) = self.ensure_devices(previous).await?;
        let Uplink { public_ip, public_ipv6, .. } = uplink;
        let backend_type = self.shared.settings().instance.name().into();
        let mut attrs =
            LeaseAttrs { public_ip, public_ipv6, backend_type, ..LeaseAttrs::default() };
        let key = public_key(&tunnels);
        for TunnelSpec { families, port, .. } in tunnels.iter().map(|tunnel| &tunnel.spec) {
            for family in families {
                let data = key.map(|key| lease_data::print(key, *port));
                match family {
                    Family::Ipv4 => attrs.backend_data = data,
                    Family::Ipv6 => attrs.backend_v6_data = data,
                }
            }
        }
        Ok(attrs)
    }

    fn report(&self) -> BackendReport {
        self.shared.stats.report()
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let (uplink, _) = self.ensure_devices(Some(lease)).await?;
        let watch = self.finder.watch(&uplink)?;
        let names = self.shared.settings().tunnels().iter().map(|it| it.name.to_owned()).collect();
        let table = self.shared.routes.open(self.finder.namespace(), names).await?;
        Ok(Box::new(WireguardNetwork::new(Arc::clone(&self.shared), watch, table)))
    }
}

/// The families of a network.
pub(crate) fn families(config: &NetworkConfig) -> Vec<Family> {
    let families =
        [(Family::Ipv4, config.ipv4().is_some()), (Family::Ipv6, config.ipv6().is_some())];
    families.into_iter().filter_map(|(family, has)| has.then_some(family)).collect()
}

fn read(options: &Fields, families: Vec<Family>) -> Result<Settings, BackendError> {
    Settings::read(options, families)
        .map_err(|source| BackendError::Config { backend: KIND.into(), source })
}
