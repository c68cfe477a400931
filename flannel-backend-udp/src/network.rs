//! The running data path: the device, the route into it, and the engine behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use flannel_backend::{
    NEXT_HOPS, PathsWatch, PeerPlan, PeerTable, TableOptions, UplinkWatch, route_mtu, smallest_mtu,
};
use flannel_core::{
    BackendConfig, BackendError, Lease, LeaseAttrs, Network, Peers, RouteScope, RoutingMode,
    Subnet, SyncReport, Transport,
};
use flannel_netlink::{
    iface::Interface,
    state::{Address, IpFamily, Link, Object, Route},
};
use flannel_tunnel::{device::Device, socket::overhead};
use ipnetwork::IpNetwork;

use crate::{
    KIND,
    config::Settings,
    ebpf::Ebpf,
    engine::{EngineStats, Userspace},
    plan::{self, ForwardingPlan},
    stats::{EBPF, USERSPACE},
};

/// The device of one network, and the way to all its peers.
#[derive(Debug)]
pub(crate) struct UdpNetwork {
    pub(crate) common: Common,
    uplink: UplinkWatch,
    device: Device,
    table: PeerTable,
    engines: Engines,
    paths: PathsWatch,
    /// How large packets to addresses of peers may be, bytes, where that is less than usual.
    limits: BTreeMap<IpAddr, u32>,
    /// The device that is watched, whose address and routes are wanted, and which routes.
    placed: Option<(Link, Subnet, RouteScope)>,
    /// Where peers were reached after the last sync.
    endpoints: Option<BTreeMap<IpNetwork, SocketAddr>>,
}

/// What carries packets, and counts them.
#[derive(Debug)]
pub(crate) struct Engines {
    pub(crate) userspace: Userspace,
    pub(crate) ebpf: Ebpf,
    pub(crate) engine_stats: Arc<EngineStats>,
}

/// What all syncs have in common.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) settings: Settings,
    /// Our own port.
    pub(crate) port: u16,
    pub(crate) routes: TableOptions,
}

impl UdpNetwork {
    pub(crate) fn new(
        common: Common,
        uplink: UplinkWatch,
        device: Device,
        table: PeerTable,
        engines: Engines,
        paths: PathsWatch,
    ) -> Self {
        let (limits, placed, endpoints) = (BTreeMap::new(), None, None);
        Self { common, uplink, device, table, engines, paths, limits, placed, endpoints }
    }

    /// Wants the address and the route of this device, and lets its drift be told.
    fn place(&mut self, link: &Link, own: &Subnet, scope: RouteScope) {
        let placed = (link.clone(), *own, scope);
        if self.placed.as_ref() == Some(&placed) {
            return;
        }
        self.table.want_own(self.common.own_objects(link, own, scope));
        self.table.replan();
        self.table.table().watch_link(link.clone());
        self.placed = Some(placed);
    }
}

/// Counts what differs between two syncs.
fn count(
    before: &BTreeMap<IpNetwork, SocketAddr>,
    after: &BTreeMap<IpNetwork, SocketAddr>,
    report: &mut SyncReport,
) {
    for (block, endpoint) in after {
        match before.get(block) {
            None => report.added += 1,
            Some(was) if was != endpoint => report.replaced += 1,
            Some(_) => {}
        }
    }
    report.removed += before.keys().filter(|block| !after.contains_key(block)).count() as u64;
}

/// Behind the metric 0 of a route without one. The device and its routes outlive the process; a flanneld that is started then makes a
/// device of its own, and takes a route to the network that has the same metric for its own.
const METRIC: u32 = 100;

impl Common {
    /// The MTU of the device, which has one for both families. IPv6 needs 1280 bytes, and where a datagram of that size does not fit
    /// it is sent in fragments.
    fn mtu(&self, uplink: &Interface) -> u32 {
        let outer = self.settings.mtu.unwrap_or(uplink.mtu);
        let networks = || self.routes.networks.iter();
        let overhead = networks().map(|network| overhead(network.ip())).max().unwrap_or_default();
        let has_ipv6 = networks().any(IpNetwork::is_ipv6);
        let smallest = if has_ipv6 { smallest_mtu(IpFamily::V6) } else { 0 };
        outer.saturating_sub(overhead as u32).max(smallest)
    }

    /// As with flannel: the subnet's own address, alone, and the network behind the device.
    fn own_objects(&self, link: &Link, own: &Subnet, scope: RouteScope) -> Vec<Object> {
        let address = |block: IpNetwork| {
            let mut address = Address::new(link.index, IpNetwork::from(block.network()));
            address.no_duplicate_detection = true;
            Object::from(address)
        };
        let addresses = own.blocks().map(address);
        let route = |network: &IpNetwork| self.route(*network, link.index).into();
        let networks = self.routes.networks.iter().filter(|_| scope.has_network());
        addresses.chain(networks.map(route)).collect()
    }

    /// A route for each block of a peer with a small path MTU: the kernel fragments what may be fragmented, and reports the MTU
    /// to other senders. In a scope of peers, all blocks have one.
    fn peer_routes(
        &self,
        endpoints: &[(IpNetwork, SocketAddr)],
        limits: &BTreeMap<IpAddr, u32>,
        link: &Link,
        scope: RouteScope,
    ) -> Vec<Object> {
        let route = |(block, endpoint): &(IpNetwork, SocketAddr)| {
            let (limit, overhead) = (limits.get(&endpoint.ip()), overhead(endpoint.ip()) as u32);
            let mtu = limit.and_then(|limit| route_mtu(block, *limit, overhead, link.mtu));
            let route = Route { mtu, ..self.route(*block, link.index) };
            (mtu.is_some() || scope.has_peers()).then(|| route.into())
        };
        endpoints.iter().filter_map(route).collect()
    }

    fn route(&self, block: IpNetwork, link: u32) -> Route {
        let mut route = Route::new(block, self.routes.protocol).direct(link);
        route.table = self.routes.table;
        route.metric = route.metric.max(METRIC);
        route
    }

    fn forwarding_plan(&self, uplink: &Interface, peers: &Peers) -> ForwardingPlan {
        let own = peers.own().subnet;
        // A family without an address has no socket; the other family works.
        let local = self.routes.networks.iter().filter_map(|network| match network {
            IpNetwork::V4(_) => uplink.v4.map(IpAddr::V4),
            IpNetwork::V6(_) => uplink.v6.map(IpAddr::V6),
        });
        let local = local.collect();
        let (mut endpoints, mut in_kernel) = (BTreeMap::new(), BTreeSet::new());
        for peer in peers.iter() {
            for (block, endpoint) in plan::endpoints(&own, peer, self.settings.port).0 {
                endpoints.insert(block, endpoint);
                if plan::uses_ebpf(&peer.attrs) {
                    in_kernel.insert(endpoint.ip());
                }
            }
        }
        ForwardingPlan {
            own,
            link: uplink.index,
            local,
            port: self.port,
            source_check: self.settings.source_check,
            path_mtu_discovery: self.settings.path_mtu_discovery,
            in_kernel,
            endpoints,
        }
    }
}

#[async_trait]
impl Network for UdpNetwork {
    fn mtu(&self) -> u32 {
        self.common.mtu(self.uplink.current())
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        self.engines.userspace.check()?;
        let uplink = self.uplink.current().clone();
        let plan = self.common.forwarding_plan(&uplink, peers);
        let link = self.device.ensure(self.common.mtu(&uplink)).await?;
        let mut ours = SyncReport::default();
        let in_kernel = self
            .engines
            .ebpf
            .sync(&plan, link.index, &self.engines.engine_stats, &mut ours)
            .await?;
        let scope = peers.route_scope();
        self.place(&link, &plan.own, scope);
        let limits = self.paths.current().mtus;
        if self.limits != limits {
            self.limits = limits;
            self.table.replan();
        }
        let (own, port) = (plan.own, self.common.settings.port);
        let (common, limits) = (&self.common, &self.limits);
        let plan_peer = |peer: &Lease| {
            let (endpoints, faults) = plan::endpoints(&own, peer, port);
            let objects = match peers.is_standby(&peer.subnet) {
                true => Vec::new(),
                false => common.peer_routes(&endpoints, limits, &link, scope),
            };
            PeerPlan { objects, faults }
        };
        let synced = self.table.sync(peers, plan_peer).await;
        // Packets go on whatever the kernel said of the route.
        let endpoints = plan.endpoints.clone();
        self.engines.userspace.apply(&link, plan, !in_kernel, &self.engines.engine_stats)?;
        if !link.running {
            self.device.settle().await?;
        }
        let before = self.endpoints.replace(endpoints.clone());
        let mut report = synced?;
        report.properties.remove(NEXT_HOPS);
        report.faults.extend(self.uplink.faults());
        if in_kernel {
            report.added += ours.added;
            report.replaced += ours.replaced;
            report.removed += ours.removed;
        } else if let Some(before) = before {
            // What the first sync loads is no change: the kernel has none of it.
            count(&before, &endpoints, &mut report);
        }
        Ok(report)
    }

    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        let Common { settings, routes, .. } = &mut self.common;
        let backend = || KIND.to_owned();
        let wanted = Settings::read(&options.options(), &routes.networks)
            .map_err(|source| BackendError::Config { backend: backend(), source })?;
        *settings = settings.adopt(wanted).map_err(|fixed| BackendError::Unsupported {
            backend: backend(),
            reason: format!("{fixed} are read when it starts"),
        })?;
        Ok(())
    }

    /// It publishes its addresses, which every backend does.
    fn foresee(&self, attrs: &LeaseAttrs) -> Option<LeaseAttrs> {
        let LeaseAttrs { public_ip, public_ipv6, .. } = *attrs;
        Some(LeaseAttrs { public_ip, public_ipv6, ..LeaseAttrs::default() })
    }

    fn knows_senders(&self) -> bool {
        true
    }

    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        let endpoints = self.endpoints.as_ref()?;
        let way =
            |block: IpNetwork| endpoints.contains_key(&block).then_some(RoutingMode::Encapsulated);
        let ipv4 = subnet.ipv4().map(IpNetwork::V4).and_then(way);
        let ipv6 = subnet.ipv6().map(IpNetwork::V6).and_then(way);
        let carrier = if self.engines.ebpf.is_running() { EBPF } else { USERSPACE };
        let is_served = ipv4.is_some() || ipv6.is_some();
        is_served.then(|| Transport::new(ipv4, ipv6).carried_by(carrier))
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        tokio::select! {
            drifted = self.table.drifted() => drifted,
            () = self.engines.userspace.ended() => Ok(()),
            drifted = self.engines.ebpf.drifted() => drifted,
            () = self.paths.changed() => Ok(()),
            changed = self.uplink.changed() => changed.map(drop),
        }
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        let Self { table, mut device, engines: Engines { mut userspace, ebpf, .. }, .. } = *self;
        userspace.stop();
        let removed = table.teardown().await;
        let left = ebpf.teardown().await;
        let deleted = device.delete().await;
        removed.and(left).and(deleted)
    }
}
