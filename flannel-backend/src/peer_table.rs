//! The kernel's state for a whole set of peers.

mod report;

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::{
    BackendError, Lease, PeerFault, Peers, Repaired, Revision, RouteScope, RoutingMode, Subnet,
    SyncReport, Transport,
};
use flannel_netlink::{
    LogLimit, Namespace, Table,
    state::{Key, Nexthop, Object, Route, Via},
    table::{Failure, Mark, TableError},
};
use ipnetwork::IpNetwork;

use crate::{
    guard::guard,
    placement::{Holder, PeerPlan, Placement},
};

/// A [`Table`] whose wants are the plans of all peers, and the node's own objects.
///
/// Routes through a gateway go through nexthop objects where the kernel has them.
#[derive(Debug)]
pub struct PeerTable {
    table: Table,
    protocol: u8,
    placement: Placement,
    faults: BTreeMap<Subnet, Vec<PeerFault>>,
    planned: Option<Revision>,
    /// What others changed since the last sync.
    drifts: Repaired,
    log: LogLimit,
    /// What the node wants for itself.
    own: Vec<Object>,
    /// Where something is placed for it.
    own_keys: BTreeSet<Key>,
    /// The routing table that our routes are in.
    number: u32,
    /// Whether there are to be routes that drop what no pod has.
    drops_unused: bool,
    /// Where packets are refused that no other route takes.
    guarded: Vec<IpNetwork>,
    /// The node's own subnet as of the last sync.
    local: Option<Subnet>,
    /// Which routes are wanted as of the last sync.
    scope: RouteScope,
}

impl PeerTable {
    /// Opens the table in `namespace` for the owner with this mark.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if the kernel cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// Writes nothing.
    pub async fn open(namespace: &Namespace, mark: Mark) -> Result<Self, BackendError> {
        let (protocol, number) = (mark.protocol, mark.table);
        let table = Table::open(namespace, mark).await.map_err(unreadable)?;
        Ok(Self {
            table,
            protocol,
            placement: Placement::default(),
            faults: BTreeMap::new(),
            planned: None,
            drifts: Repaired::default(),
            log: LogLimit::default(),
            own: Vec::new(),
            own_keys: BTreeSet::new(),
            number,
            drops_unused: false,
            guarded: Vec::new(),
            local: None,
            scope: RouteScope::default(),
        })
    }

    /// The same with a route for each block of the node's own subnet that drops packets to addresses which nothing else leads to:
    /// otherwise a default route, or one to the whole network, sends them on.
    #[must_use]
    pub fn with_blackholes(mut self) -> Self {
        self.drops_unused = true;
        self
    }

    /// The same with the routes of [`ensure_guards`](crate::ensure_guards) for `networks`.
    #[must_use]
    pub fn with_guards(mut self, networks: Vec<IpNetwork>) -> Self {
        self.guarded = networks;
        self
    }

    /// The table itself, to look at devices and to watch them.
    pub fn table(&mut self) -> &mut Table {
        &mut self.table
    }

    /// The node wants exactly these objects for itself.
    pub fn want_own(&mut self, objects: impl IntoIterator<Item = Object>) {
        self.own = objects.into_iter().collect();
        self.place_own();
    }

    fn place_own(&mut self) {
        let local = self.local.filter(|_| self.drops_unused && self.scope.has_network());
        let blackholes = local.iter().flat_map(Subnet::blocks).map(|block| {
            let mut route = Route::new(block, self.protocol).blackhole();
            (route.table, route.metric) = (self.number, LAST);
            Object::from(route)
        });
        let guards = self.guards().map(|it| guard(it, self.protocol, self.number).into());
        let objects: Vec<_> = self.own.iter().copied().chain(blackholes).chain(guards).collect();
        let objects = self.shape_all(objects);
        let keys = objects.iter().map(Object::key).collect();
        let before = std::mem::replace(&mut self.own_keys, keys);
        self.place(Holder::NODE, before, objects);
    }

    /// The networks that are guarded: none while another network of the node has the routes for that.
    fn guards(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        let is_alone = self.scope == RouteScope::Network;
        self.guarded.iter().filter(move |_| is_alone).copied()
    }

    /// Forgets what was planned, so that the next [`sync`](Self::sync) plans every peer anew: for when what plans depend on has
    /// changed.
    pub fn replan(&mut self) {
        self.planned = None;
    }

    /// Makes the kernel match the plans of `peers`. `plan` says what one peer needs; it is asked for those that changed.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if the kernel cannot be read. What it refuses is in the report.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves part of the work done; the next call does the rest.
    pub async fn sync(
        &mut self,
        peers: &Peers,
        plan: impl Fn(&Lease) -> PeerPlan,
    ) -> Result<SyncReport, BackendError> {
        let own = peers.own().subnet;
        let scope = peers.route_scope();
        let before = std::mem::replace(&mut self.scope, scope);
        if self.local.replace(own) != Some(own) || before != scope {
            self.table.set_local(own.blocks().collect());
            self.place_own();
        }
        match self.planned.as_ref().and_then(|planned| peers.changed_since(planned)) {
            Some(changed) => {
                let plan = |subnet| (subnet, peers.get(&subnet).map(&plan).unwrap_or_default());
                self.follow(changed.into_iter().map(plan));
            }
            None => {
                let gone = self.gone(peers).into_iter().map(|it| (it, PeerPlan::default()));
                self.follow(gone.chain(peers.iter().map(|peer| (peer.subnet, plan(peer)))));
                self.placement.close_gaps();
            }
        }
        self.planned = Some(peers.revision().clone());
        let report = self.table.sync().await.map_err(unreadable)?;
        Ok(self.report(peers, report))
    }

    /// Resolves when the kernel may not match any more, and logs what somebody else changed.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if the kernel's notifications cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn drifted(&mut self) -> Result<(), BackendError> {
        let drifts = self.table.drifted().await.map_err(unreadable)?;
        self.note(&drifts);
        Ok(())
    }

    /// How packets reach the peer that holds `subnet`, from what is wanted for it; `None` if nothing is.
    pub fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        let number = self.placement.number_of(Holder::peer(*subnet))?;
        let way = |block| {
            let key = self.table.route_to(block)?;
            let (whose, Object::Route(route)) = self.table.wanted_tagged(&key)? else {
                return None;
            };
            let link = match route.via {
                Via::Nexthop(id) => self.table.wanted(&Key::Nexthop(id))?.link(),
                _ => route.link,
            };
            let is_ours = link.is_some_and(|link| self.table.is_our_device(link));
            let way = if is_ours { RoutingMode::Encapsulated } else { RoutingMode::Direct };
            (whose == number).then_some(way)
        };
        let ipv4 = subnet.ipv4().and_then(|block| way(block.into()));
        let ipv6 = subnet.ipv6().and_then(|block| way(block.into()));
        (ipv4.is_some() || ipv6.is_some()).then_some(Transport::new(ipv4, ipv6))
    }

    /// Removes all that carries our mark but [guards](Self::with_guards), which the node's next backend takes over.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] naming the first object that could not be removed; all others are removed all the same.
    pub async fn teardown(mut self) -> Result<(), BackendError> {
        let guards = self.guards().map(|it| guard(it, self.protocol, self.number).into());
        self.table.want_only(guards.collect::<Vec<_>>());
        let report = self.table.sync().await.map_err(unreadable)?;
        report.failures.into_iter().next().map_or(Ok(()), |failure| Err(refused(failure)))
    }

    /// Leaves what leads to peers as flanneld makes it, so that packets keep flowing and flanneld can follow and remove it: routes
    /// through their gateways themselves, without our mark. All else of ours goes.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] naming the first object that was refused; all others are done all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves a part in our form, which still carries packets.
    pub async fn hand_over(mut self) -> Result<(), BackendError> {
        let keys: Vec<_> = self.table.wanted_keys().collect();
        let wanted = keys.iter().filter_map(|key| self.table.wanted(key));
        let theirs: Vec<_> = wanted.filter_map(|object| self.as_flannels(object)).collect();
        self.table.want_only(theirs);
        let report = self.table.sync().await.map_err(unreadable)?;
        report.failures.into_iter().next().map_or(Ok(()), |failure| Err(refused(failure)))
    }

    /// What flanneld has in the place of an object of ours.
    fn as_flannels(&self, object: Object) -> Option<Object> {
        let route = match object {
            Object::Nexthop(_) => return None,
            Object::Route(route) => route,
            object => return Some(object),
        };
        let route = match route.via {
            Via::Nexthop(id) => match self.table.wanted(&Key::Nexthop(id))? {
                Object::Nexthop(Nexthop { gateway, link, onlink, .. }) => {
                    Route { onlink, ..route.via_gateway(gateway, link) }
                }
                _ => return None,
            },
            Via::Gateway(_) => route,
            Via::Direct if route.link.is_some() => route,
            _ => return None,
        };
        Some(Route { protocol: Route::BOOT, mtu: None, ..route }.into())
    }

    /// The subnets that something was planned for and that are no peers' any more.
    fn gone(&self, peers: &Peers) -> BTreeSet<Subnet> {
        let planned = self.placement.holders().filter_map(Holder::subnet);
        planned
            .chain(self.faults.keys().copied())
            .filter(|subnet| peers.get(subnet).is_none())
            .collect()
    }

    /// Takes in the plans of some peers.
    fn follow(&mut self, mut plans: impl Iterator<Item = (Subnet, PeerPlan)>) {
        loop {
            let some: Vec<_> = plans.by_ref().take(PLANS_AT_ONCE).collect();
            if some.is_empty() {
                return;
            }
            let holders = some.iter().map(|(subnet, _)| Holder::peer(*subnet));
            let mut before = self.placement.keys_of(holders, self.table.wanted_tags());
            for (subnet, PeerPlan { objects, faults }) in some {
                let before = before.remove(&Holder::peer(subnet)).unwrap_or_default();
                let objects = self.shape_all(objects);
                self.place(Holder::peer(subnet), before, objects);
                if faults.is_empty() {
                    self.faults.remove(&subnet);
                } else {
                    self.faults.insert(subnet, faults);
                }
            }
        }
    }

    fn place(
        &mut self,
        holder: Holder,
        before: impl IntoIterator<Item = Key>,
        objects: Vec<Object>,
    ) {
        let placed = |key: &Key| self.table.wanted_tagged(key);
        let changes = self.placement.place(holder, before, objects, placed);
        for key in &changes.forget {
            self.table.forget(key);
        }
        for (number, object) in changes.want {
            self.table.want_tagged(number, object);
        }
    }

    fn shape_all(&mut self, objects: Vec<Object>) -> Vec<Object> {
        objects.into_iter().flat_map(|object| self.shape(object)).collect()
    }

    /// A route through a gateway as a route through a nexthop object and that object, where the kernel has such.
    fn shape(&mut self, object: Object) -> impl Iterator<Item = Object> + use<> {
        if let Object::Route(route) = object
            && let (Via::Gateway(gateway), Some(link)) = (route.via, route.link)
            && self.table.nexthops_supported()
            && let Some(id) = self.table.nexthop_id(link, gateway)
        {
            let mut nexthop = Nexthop::new(id, link, gateway, self.protocol);
            nexthop.onlink = route.onlink;
            return Some(nexthop.into()).into_iter().chain([route.via_nexthop(id).into()]);
        }
        None.into_iter().chain([object])
    }
}

fn operation(failure: &Failure) -> String {
    let text = failure.to_string();
    text.strip_prefix("cannot ").unwrap_or(&text).to_owned()
}

fn refused(failure: Failure) -> BackendError {
    BackendError::Kernel { operation: operation(&failure), source: failure.source.into() }
}

fn unreadable(error: TableError) -> BackendError {
    BackendError::Kernel { operation: "follow the kernel's state".into(), source: error.into() }
}

/// The property of a report that says how routes refer to their gateways: by `nexthop` objects, which stay fast with many peers
/// (Linux 5.3 and newer), or `plain`.
pub const NEXT_HOPS: &str = "next_hops";

/// Looking at all that is wanted costs some hundred times as much as the plan of a peer.
const PLANS_AT_ONCE: usize = 256;

/// The metric of a route that counts only where there is no other: that of a bridge with the same block goes before it.
pub(crate) const LAST: u32 = 1 << 30;
