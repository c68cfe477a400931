//! The kernel's state for a whole set of peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use flannel_core::{
    BackendError, Fault, FaultKind, Lease, PeerFault, PeerProblem, Peers, Repaired, Revision,
    RoutingMode, Subnet, SyncReport, Transport,
};
use flannel_netlink::{
    LogLimit, Namespace, Table,
    state::{Key, Nexthop, Object, Route, Via},
    table::{Drift, DriftChange, Failure, Mark, TableError, TableReport},
};
use ipnetwork::IpNetwork;

use crate::{
    drift_log,
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
    /// The routing table that our routes are in.
    number: u32,
    /// Whether there are to be routes that drop what no pod has.
    drops_unused: bool,
    /// The node's own subnet as of the last sync.
    local: Option<Subnet>,
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
            number,
            drops_unused: false,
            local: None,
        })
    }

    /// The same with a route for each block of the node's own subnet that drops packets to addresses which nothing else leads to:
    /// otherwise a default route, or one to the whole network, sends them on.
    #[must_use]
    pub fn with_blackholes(mut self) -> Self {
        self.drops_unused = true;
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
        let local = self.local.filter(|_| self.drops_unused);
        let blackholes = local.iter().flat_map(Subnet::blocks).map(|block| {
            let mut route = Route::new(block, self.protocol).blackhole();
            (route.table, route.metric) = (self.number, LAST);
            Object::from(route)
        });
        let objects = self.own.iter().copied().chain(blackholes).collect();
        self.place(Holder::NODE, objects);
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
        if self.local.replace(own) != Some(own) {
            self.table.set_local(own.blocks().collect());
            self.place_own();
        }
        match self.planned.as_ref().and_then(|planned| peers.changed_since(planned)) {
            Some(changed) => {
                for subnet in changed {
                    self.follow(subnet, peers.get(&subnet).map(&plan).unwrap_or_default());
                }
            }
            None => {
                for subnet in self.gone(peers) {
                    self.follow(subnet, PeerPlan::default());
                }
                for peer in peers.iter() {
                    self.follow(peer.subnet, plan(peer));
                }
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
        let (number, keys) = self.placement.keys_of(Holder::peer(*subnet))?;
        let encapsulates = |link: u32| {
            keys.iter().any(|key| matches!(key, Key::ForwardingEntry(at, _) if *at == link))
        };
        let mut transport = Transport::new(None, None);
        for key in keys {
            let Some((whose, Object::Route(route))) = self.table.wanted_tagged(key) else {
                continue;
            };
            if whose != number {
                continue;
            }
            let link = match route.via {
                Via::Nexthop(id) => {
                    self.table.wanted(&Key::Nexthop(id)).and_then(|nexthop| nexthop.link())
                }
                _ => route.link,
            };
            let way = if link.is_some_and(encapsulates) {
                RoutingMode::Encapsulated
            } else {
                RoutingMode::Direct
            };
            match route.destination {
                IpNetwork::V4(_) => transport.ipv4 = Some(way),
                IpNetwork::V6(_) => transport.ipv6 = Some(way),
            }
        }
        (transport.ipv4.is_some() || transport.ipv6.is_some()).then_some(transport)
    }

    /// Removes all that carries our mark.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] naming the first object that could not be removed; all others are removed all the same.
    pub async fn teardown(mut self) -> Result<(), BackendError> {
        self.table.want_only([]);
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

    fn follow(&mut self, subnet: Subnet, PeerPlan { objects, faults }: PeerPlan) {
        self.place(Holder::peer(subnet), objects);
        if faults.is_empty() {
            self.faults.remove(&subnet);
        } else {
            self.faults.insert(subnet, faults);
        }
    }

    fn place(&mut self, holder: Holder, objects: Vec<Object>) {
        let objects: Vec<_> = objects.into_iter().flat_map(|object| self.shape(object)).collect();
        let changes = self.placement.place(holder, objects, |key| self.table.wanted_tagged(key));
        for key in &changes.forget {
            self.table.forget(key);
        }
        for (number, object) in changes.want {
            self.table.want_tagged(number, object);
        }
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

    /// Logs what others changed, and remembers it for the next report.
    fn note(&mut self, drifts: &[Drift]) {
        drift_log::log(&mut self.log, drifts);
        let is_undone = |change: &DriftChange| {
            !matches!(change, DriftChange::MayWorkNow | DriftChange::Overridden(_))
        };
        for drift in drifts.iter().filter(|drift| is_undone(&drift.change)) {
            self.drifts.add(drift.subject.kind(), drift);
        }
    }

    fn report(&mut self, peers: &Peers, table: TableReport) -> SyncReport {
        self.note(&table.drifts);
        let mut report = SyncReport::default();
        report.read = table.read as u64;
        report.added = table.added as u64;
        report.replaced = table.replaced as u64;
        report.removed = table.removed as u64;
        report.left_alone = table.left_alone as u64;
        report.drifted = table.drifts.len() as u64;
        report.postponed = table.postponed as u64;
        let next_hops = if self.table.nexthops_supported() { "nexthop" } else { "plain" };
        report.properties.insert(NEXT_HOPS.into(), next_hops.into());
        let mut faults = self.faults.clone();
        for failure in table.failures {
            let subnets = self.blamed(&failure.key());
            if subnets.is_empty() {
                // Of many that fail for one reason, one says it.
                let object = failure.key().to_string();
                let (operation, reason) = (operation(&failure), failure.source.to_string());
                if report.faults.iter().all(|fault| fault.reason != reason) {
                    let kind = FaultKind::KernelRefused;
                    report.faults.push(Fault::new(kind, object, operation, reason));
                }
                continue;
            }
            let (operation, reason) = (operation(&failure), failure.source.to_string());
            // The kernel takes an address for invalid that is no station's, such as the broadcast address of our link.
            let is_invalid = failure.source.invalid() && has_gateway(&failure.object);
            let fault = match failure.source.unreachable() || is_invalid {
                true => PeerFault::Unreachable { operation, reason },
                false => PeerFault::Kernel { operation, reason },
            };
            for subnet in subnets {
                faults.entry(subnet).or_default().push(fault.clone());
            }
        }
        for (subnet, route) in self.overridden(peers, table.overridden) {
            let route = route.to_string();
            faults.entry(subnet).or_default().push(PeerFault::Overridden { route });
        }
        report.repaired = mem::take(&mut self.drifts);
        for (subnet, faults) in faults {
            let address = peers.get(&subnet).and_then(|lease| lease.attrs.address());
            // One refusal of the kernel is enough: the route fails because its nexthop did.
            let mut refused = false;
            for fault in faults {
                if !fault.is_retryable() || !mem::replace(&mut refused, true) {
                    report.problems.push(PeerProblem::new(subnet, address, fault));
                }
            }
        }
        report
    }

    /// The peers that packets do not take our route to, with the routes that they take: to what is wanted for a peer alone, or to a
    /// part of a network that one route of the node's own leads to.
    fn overridden(&self, peers: &Peers, overridden: Vec<(Key, Route)>) -> Vec<(Subnet, Route)> {
        let (mut found, mut wide) = (Vec::new(), BTreeMap::new());
        for (key, route) in overridden {
            let subnets = self.blamed(&key);
            if subnets.is_empty() {
                wide.insert(route.destination, (key, route));
            }
            found.extend(subnets.into_iter().map(|subnet| (subnet, route)));
        }
        if wide.is_empty() {
            return found;
        }
        let taken = |block: IpNetwork| {
            let around = (0..=block.prefix()).rev().filter_map(|len| enclosing(block, len));
            let (key, route) = around.filter_map(|it| wide.get(&it)).next()?;
            (self.table.route_to(block) == Some(*key)).then_some(*route)
        };
        for peer in peers.iter() {
            let routes = peer.subnet.blocks().filter_map(taken);
            found.extend(routes.map(|route| (peer.subnet, route)));
        }
        found
    }

    /// The peers that want what is at `key`; none if it is the node's own or nobody's.
    fn blamed(&self, key: &Key) -> Vec<Subnet> {
        let winner = self.table.wanted_tagged(key).map(|(number, _)| number);
        self.placement.holders_of(key, winner).filter_map(Holder::subnet).collect()
    }
}

/// The block of `len` leading bits that `block` is in.
fn enclosing(block: IpNetwork, len: u8) -> Option<IpNetwork> {
    let around = IpNetwork::new(block.ip(), len).ok()?;
    IpNetwork::new(around.network(), len).ok()
}

fn has_gateway(object: &Object) -> bool {
    match object {
        Object::Nexthop(_) => true,
        Object::Route(route) => matches!(route.via, Via::Gateway(_) | Via::Nexthop(_)),
        _ => false,
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

/// The metric of a route that counts only where there is no other: that of a bridge with the same block goes before it.
const LAST: u32 = 1 << 30;
