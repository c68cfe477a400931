//! The backend: which routes are ours, and what we publish.

use async_trait::async_trait;
use flannel_backend::{PROTOCOL, Paths, PeerTable, Uplink, UplinkFinder};
use flannel_core::{Backend, BackendError, Lease, LeaseAttrs, Network, NetworkConfig};
use flannel_netlink::{state::Route, table::Mark};
use ipnetwork::IpNetwork;
use tracing::warn;

use crate::{KIND, network::HostGwNetwork, plan::Routes};

/// Carries packets by routes through the peers themselves.
#[derive(Debug)]
pub struct HostGw {
    networks: Vec<IpNetwork>,
    finder: UplinkFinder,
    protocol: u8,
    table: u32,
    paths: Paths,
    blackholes: bool,
}

impl HostGw {
    /// The backend of the network in `config`, on the uplink that `finder` finds, with routes in the main table.
    pub fn new(config: &NetworkConfig, finder: UplinkFinder) -> Self {
        let ipv4 = config.ipv4().map(|range| IpNetwork::V4(range.network()));
        let ipv6 = config.ipv6().map(|range| IpNetwork::V6(range.network()));
        let networks = ipv4.into_iter().chain(ipv6).collect();
        let options = config.backend().options();
        let known = |name: &&str| KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name));
        for key in options.names().filter(|name| !known(name)) {
            warn!(key, "the host-gw backend has no such option");
        }
        let paths = Paths::default();
        Self { networks, finder, protocol: PROTOCOL, table: Route::MAIN, paths, blackholes: false }
    }

    /// The same with another mark on its routes: a routing protocol number and a table. Our routes are told from others by them,
    /// and by lying inside of the network.
    #[must_use]
    pub fn with_mark(mut self, protocol: u8, table: u32) -> Self {
        (self.protocol, self.table) = (protocol, table);
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
        self.blackholes = true;
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
        flannel_backend::remove_leftovers(self.finder.namespace(), &self.networks, &[]).await?;
        let mut mark = Mark::new(self.protocol, self.networks.clone());
        mark.table = self.table;
        mark.nexthops =
            flannel_backend::nexthop_ids(self.finder.namespace(), &self.networks, self.table)
                .await?;
        let mut table = PeerTable::open(self.finder.namespace(), mark).await?;
        if self.blackholes {
            table = table.with_blackholes();
        }
        let (protocol, table_number) = (self.protocol, self.table);
        let routes = Routes { link: uplink.interface.index, protocol, table: table_number };
        let paths = self.paths.watch();
        Ok(Box::new(HostGwNetwork::new(watch, lease.clone(), table, routes, paths)))
    }
}

/// There are no options on Linux: `Name` and `DNSServerList` are for Windows nodes.
const KNOWN: [&str; 3] = ["Type", "Name", "DNSServerList"];
