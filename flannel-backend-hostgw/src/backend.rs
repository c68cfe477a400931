//! The backend: which routes are ours, and what we publish.

use async_trait::async_trait;
use flannel_backend::{
    Paths, TableOptions, Uplink, UplinkFinder, read_mtu, smallest_mtu, warn_of_unknown_options,
};
use flannel_core::{
    Backend, BackendConfig, BackendError, Lease, LeaseAttrs, Network, NetworkConfig, Place,
};
use flannel_netlink::state::IpFamily;
use ipnetwork::IpNetwork;

use crate::{KIND, network::HostGwNetwork};

/// Carries packets by routes through the peers themselves.
#[derive(Debug)]
pub struct HostGw {
    routes: TableOptions,
    finder: UplinkFinder,
    paths: Paths,
    mtu: Option<u32>,
}

impl HostGw {
    /// The backend of the network in `config`, on the uplink that `finder` finds, with routes in the main table.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] if the option MTU is invalid.
    pub fn new(config: &NetworkConfig, finder: UplinkFinder) -> Result<Self, BackendError> {
        let routes = TableOptions::new(config);
        let mtu = read(config.backend(), &routes.networks)?;
        warn_of_unknown_options(KIND, &config.backend().options(), &KNOWN);
        Ok(Self { routes, finder, paths: Paths::default(), mtu })
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

    /// The same with what is known of the ways to peers: routes to peers that take less say so, also when it becomes known later.
    #[must_use]
    pub fn with_paths(mut self, paths: Paths) -> Self {
        self.paths = paths;
        self
    }

    /// The same with routes that drop packets to addresses of our own subnet that no pod has.
    #[must_use]
    pub fn with_blackholes(mut self) -> Self {
        self.routes.blackholes = true;
        self
    }

    async fn uplink(&self, lease: Option<&Lease>) -> Result<Uplink, BackendError> {
        let uplink = self.finder.find_for(lease).await?;
        let Uplink { interface, public_ip, public_ipv6, .. } = &uplink;
        if (*public_ip, *public_ipv6) != (interface.v4, interface.v6) {
            return Err(BackendError::Unsupported {
                backend: KIND.into(),
                reason: format!(
                    "peers would route to a public address that is not one of {}, so something in between translates \
                     addresses: leave out the public address, or use vxlan",
                    interface.name
                ),
            });
        }
        Ok(uplink)
    }
}

#[async_trait]
impl Backend for HostGw {
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let Uplink { public_ip, public_ipv6, .. } = self.uplink(previous).await?;
        let backend_type = KIND.into();
        Ok(LeaseAttrs { public_ip, public_ipv6, backend_type, ..LeaseAttrs::default() })
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let uplink = self.uplink(Some(lease)).await?;
        let watch = self.finder.watch(&uplink)?;
        let table = self.routes.open(self.finder.namespace(), Vec::new()).await?;
        let paths = self.paths.watch();
        let network = HostGwNetwork::new(watch, lease.subnet, table, &self.routes, paths, self.mtu);
        Ok(Box::new(network))
    }
}

/// Reads the option MTU, for pods in `networks`.
pub(crate) fn read(
    options: &BackendConfig,
    networks: &[IpNetwork],
) -> Result<Option<u32>, BackendError> {
    let smallest = networks.iter().map(|network| smallest_mtu(IpFamily::of(&network.ip()))).max();
    read_mtu(&options.options(), smallest.unwrap_or_default())
        .map_err(|source| BackendError::Config { backend: KIND.into(), source })
}

/// `Name` and `DNSServerList` are for Windows nodes.
const KNOWN: [&str; 4] = ["Type", "MTU", "Name", "DNSServerList"];
