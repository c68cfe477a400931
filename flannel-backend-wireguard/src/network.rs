//! The running data path: our own devices with their peers, and the routes into them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use flannel_backend::{NEXT_HOPS, PathsWatch, PeerPlan, PeerTable, UplinkWatch, route_mtu};
use flannel_core::{
    BackendConfig, BackendError, Family, Lease, Network, PeerFault, PeerProblem, Peers, RouteScope,
    RoutingMode, Subnet, SyncReport, Transport,
};
use flannel_netlink::{
    Ensured, LogLimit,
    state::{Address, Link, Object, Route},
    wireguard::PublicKey,
};
use ipnetwork::IpNetwork;
use tokio::time::{Instant, sleep_until};

use crate::{
    arrivals::Arrivals,
    backend::Shared,
    config::{Instance, OVERHEAD},
    device::Tunnel,
    plan::{Facts, Plan, block},
    tunnel_peers::TunnelPeers,
};

/// The devices of one network, and the way to all its peers.
#[derive(Debug)]
pub(crate) struct WireguardNetwork {
    shared: Arc<Shared>,
    uplink: UplinkWatch,
    table: PeerTable,
    paths: PathsWatch,
    /// How large packets to addresses of peers may be, bytes, where that is less than usual.
    limits: BTreeMap<IpAddr, u32>,
    arrivals: Arrivals,
    plan: Plan,
    tunnels: Vec<TunnelPeers>,
    /// The devices that are watched and have routes, our subnet, and which routes.
    placed: Option<(Vec<Link>, Subnet, RouteScope)>,
    look_at: Instant,
    log: LogLimit,
}

impl WireguardNetwork {
    pub(crate) fn new(shared: Arc<Shared>, uplink: UplinkWatch, table: PeerTable) -> Self {
        let paths = shared.paths.watch();
        Self {
            shared,
            uplink,
            table,
            paths,
            limits: BTreeMap::new(),
            arrivals: Arrivals::default(),
            plan: Plan::default(),
            tunnels: Vec::new(),
            placed: None,
            look_at: Instant::now() + INTERVAL,
            log: LogLimit::default(),
        }
    }

    /// Keeps what is known of the peers of devices that are the same as before.
    fn keep(&mut self, tunnels: Vec<Tunnel>) {
        let mut before = std::mem::take(&mut self.tunnels);
        let keep = |tunnel: Tunnel| {
            let same = before.iter().position(|it| it.tunnel.link.index == tunnel.link.index);
            match same.map(|at| before.swap_remove(at)) {
                Some(mut known) => {
                    known.tunnel = tunnel;
                    known
                }
                None => TunnelPeers::new(tunnel),
            }
        };
        self.tunnels = tunnels.into_iter().map(keep).collect();
    }

    /// Plans for the peers, if anything that plans depend on has changed.
    fn follow(&mut self, peers: &Peers) -> Result<(), BackendError> {
        let uplink = self.uplink.current();
        let own_key = self.tunnels.iter().find_map(|it| it.tunnel.device.public_key);
        let own_key = own_key.ok_or_else(|| BackendError::Kernel {
            operation: "read our public key".into(),
            source: "no device has one".into(),
        })?;
        let tunnels = self.tunnels.iter().map(|it| it.spec().clone()).collect();
        let local = (uplink.v4, uplink.v6);
        let facts = Facts { settings: self.shared.settings(), tunnels, own_key, local };
        let mut plan = facts.plan(peers.own(), self.arrivals.newest_first(peers));
        plan.shake_hands_with(|subnet| peers.is_standby(subnet));
        let limits = self.paths.current().mtus;
        if (&self.plan, &self.limits) != (&plan, &limits) {
            (self.plan, self.limits) = (plan, limits);
            self.table.replan();
        }
        Ok(())
    }

    /// Wants the addresses of our devices and the routes into them, and lets drift of the devices be told.
    fn place(&mut self, own: &Subnet, scope: RouteScope) {
        let links: Vec<_> = self.tunnels.iter().map(|it| it.tunnel.link.clone()).collect();
        let placed = (links, *own, scope);
        if self.placed.as_ref() == Some(&placed) {
            return;
        }
        for link in &placed.0 {
            // How long its queue is, is up to the operator.
            self.table.table().watch_link(Link { queue: 0, ..link.clone() });
        }
        let objects: Vec<_> =
            self.tunnels.iter().flat_map(|it| self.own_objects(it, own, scope)).collect();
        self.table.want_own(objects);
        self.table.replan();
        self.placed = Some(placed);
    }

    /// As with flannel: the subnet's own address, alone, and the whole network behind the device, which drops what is for no peer.
    fn own_objects(&self, tunnel: &TunnelPeers, own: &Subnet, scope: RouteScope) -> Vec<Object> {
        let link = &tunnel.tunnel.link;
        let of = |family: &Family| {
            let block = block(own, *family)?;
            let mut networks = self.shared.routes.networks.iter();
            let network = networks.find(|network| network.is_ipv4() == block.is_ipv4())?;
            let mut address = Address::new(link.index, IpNetwork::from(block.network()));
            address.no_duplicate_detection = true;
            let route = scope.has_network().then(|| self.route(*network, link).into());
            Some([Some(Object::from(address)), route].into_iter().flatten())
        };
        tunnel.spec().families.iter().filter_map(of).flatten().collect()
    }

    fn route(&self, block: IpNetwork, link: &Link) -> Route {
        let route = Route::new(block, self.shared.routes.protocol).direct(link.index);
        Route { table: self.shared.routes.table, ..route }
    }

    /// A route for each block of a peer with a small path MTU, by which the kernel tells senders. In a scope of peers, all blocks have
    /// one.
    fn peer_routes(&self, subnet: &Subnet, scope: RouteScope) -> Vec<Object> {
        let route = |block: IpNetwork| {
            let (number, endpoint) = self.plan.endpoint(&block)?;
            let link = &self.tunnels.get(number)?.tunnel.link;
            let limit = self.limits.get(&endpoint.ip());
            let mtu = limit.and_then(|limit| route_mtu(&block, *limit, OVERHEAD, link.mtu));
            let route = Route { mtu, ..self.route(block, link) };
            (mtu.is_some() || scope.has_peers()).then(|| route.into())
        };
        subnet.blocks().filter_map(route).collect()
    }

    async fn sync_tunnels(
        &mut self,
        report: &mut SyncReport,
    ) -> Result<Vec<(PublicKey, PeerFault)>, BackendError> {
        let mut devices = self.shared.devices.lock().await;
        let mut faults = Vec::new();
        for (tunnel, wanted) in self.tunnels.iter_mut().zip(&self.plan.peers) {
            match tunnel.tunnel.ensured {
                Ensured::Adopted => {}
                Ensured::Created => report.added += 1,
                _ => report.replaced += 1,
            }
            faults.extend(tunnel.sync(wanted, &mut devices, &mut self.log, report).await?);
        }
        self.look_at = Instant::now() + INTERVAL;
        Ok(faults)
    }

    /// Waits until a device or one of its peers is no longer as the last sync left it, or a peer ceases to answer or answers again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    async fn tunnels_changed(
        tunnels: &mut [TunnelPeers],
        look_at: &mut Instant,
        shared: &Shared,
    ) -> Result<(), BackendError> {
        loop {
            sleep_until(*look_at).await;
            let mut has_changed = false;
            for tunnel in &mut *tunnels {
                has_changed |= tunnel.has_changed(&mut *shared.devices.lock().await).await?;
            }
            *look_at = Instant::now() + INTERVAL;
            if has_changed {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Network for WireguardNetwork {
    fn mtu(&self) -> u32 {
        self.shared.settings().device_mtu(self.uplink.current())
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let shared = Arc::clone(&self.shared);
        let uplink = self.uplink.current();
        let tunnels = shared.devices.lock().await.ensure(&shared.settings(), uplink).await?;
        self.keep(tunnels);
        self.follow(peers)?;
        let scope = peers.route_scope();
        self.place(&peers.own().subnet, scope);
        let mut ours = SyncReport::default();
        let faults = self.sync_tunnels(&mut ours).await?;
        let plans: BTreeMap<_, _> = peers
            .iter()
            .map(|peer| {
                let faults = self.plan.faults.get(&peer.subnet).cloned().unwrap_or_default();
                let objects = match peers.is_standby(&peer.subnet) {
                    true => Vec::new(),
                    false => self.peer_routes(&peer.subnet, scope),
                };
                (peer.subnet, PeerPlan { objects, faults })
            })
            .collect();
        let plan = |peer: &Lease| plans.get(&peer.subnet).cloned().unwrap_or_default();
        let mut report = self.table.sync(peers, plan).await?;
        report.properties.remove(NEXT_HOPS);
        add(&mut report, ours);
        report.faults.extend(self.uplink.faults());
        for (key, fault) in faults {
            for subnet in self.plan.holders.get(&key).into_iter().flatten() {
                let address = peers.get(subnet).and_then(|lease| lease.attrs.address());
                report.problems.push(PeerProblem::new(*subnet, address, fault.clone()));
            }
        }
        report.problems.sort_by_key(|problem| problem.peer);
        Ok(report)
    }

    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        self.shared.reconfigure(options)
    }

    fn knows_senders(&self) -> bool {
        true
    }

    /// A handshake shows that the peer has our key.
    fn is_accepted(&self, subnet: &Subnet) -> bool {
        let is_answered = |block: IpNetwork| {
            let (number, key) = self.plan.blocks.get(&block)?;
            Some(self.tunnels.get(*number)?.has_session(key))
        };
        subnet.blocks().filter_map(is_answered).all(|is_answered| is_answered)
    }

    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        let way = |family| {
            let block = block(subnet, family)?;
            self.plan.blocks.contains_key(&block).then_some(RoutingMode::Encapsulated)
        };
        let (ipv4, ipv6) = (way(Family::Ipv4), way(Family::Ipv6));
        (ipv4.is_some() || ipv6.is_some()).then(|| Transport::new(ipv4, ipv6))
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        let Self { tunnels, look_at, shared, table, paths, uplink, .. } = self;
        tokio::select! {
            drifted = table.drifted() => drifted,
            changed = Self::tunnels_changed(tunnels, look_at, shared) => changed,
            () = paths.changed() => Ok(()),
            changed = uplink.changed() => changed.map(drop),
        }
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        let Self { shared, table, .. } = *self;
        let removed = table.teardown().await;
        let deleted = shared.devices.lock().await.delete().await;
        removed.and(deleted)
    }

    /// The devices stay until flanneld replaces them with its own.
    async fn hand_over(self: Box<Self>) -> Result<(), BackendError> {
        let instance = self.shared.settings().instance;
        if instance == Instance::Second {
            let reason = "flannel has no such backend: rotate the keys once more".into();
            return Err(BackendError::Unsupported { backend: instance.name().into(), reason });
        }
        self.table.hand_over().await
    }
}

/// Adds what was done to devices and peers to what was done to routes.
fn add(report: &mut SyncReport, ours: SyncReport) {
    report.read += ours.read;
    report.added += ours.added;
    report.replaced += ours.replaced;
    report.removed += ours.removed;
    report.drifted += ours.drifted;
    for (kind, count) in ours.repaired.by_kind {
        *report.repaired.by_kind.entry(kind).or_default() += count;
    }
    report.repaired.examples.extend(ours.repaired.examples);
}

/// How often devices are looked at, because the kernel sends no notifications of keys and peers: half of what a repair may take.
const INTERVAL: Duration = Duration::from_millis(500);
