//! What a sync of the table means for the peers.

use std::{collections::BTreeMap, mem};

use flannel_core::{Fault, FaultKind, PeerFault, PeerProblem, Peers, Subnet, SyncReport};
use flannel_netlink::{
    state::{Key, Object, Route, Via},
    table::{Drift, DriftChange, TableReport, blocks_around},
};
use ipnetwork::IpNetwork;

use super::{NEXT_HOPS, PeerTable, operation};
use crate::{drift_log, placement::Holder};

impl PeerTable {
    /// Logs what others changed, and remembers it for the next report.
    pub(super) fn note(&mut self, drifts: &[Drift]) {
        drift_log::log(&mut self.log, drifts);
        let is_undone = |change: &DriftChange| {
            !matches!(change, DriftChange::MayWorkNow | DriftChange::Overridden(_))
        };
        for drift in drifts.iter().filter(|drift| is_undone(&drift.change)) {
            self.drifts.add(drift.subject.kind(), drift);
        }
    }

    /// What the node says about a sync.
    pub(super) fn report(&mut self, peers: &Peers, table: TableReport) -> SyncReport {
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

    /// The peers that packets do not take our route to, or not all of them, with a route that they take: one for each route that is
    /// wanted for a peer alone, and for each block of a peer that one route of the node's own leads to.
    fn overridden(&self, peers: &Peers, overridden: Vec<(Key, Route)>) -> Vec<(Subnet, Route)> {
        let (mut found, mut wide) = (BTreeMap::new(), BTreeMap::new());
        for (key, route) in overridden {
            let subnets = self.blamed(&key);
            if subnets.is_empty() {
                wide.insert(route.destination, (key, route));
            }
            for subnet in subnets {
                found.entry((subnet, key)).or_insert(route);
            }
        }
        let mut found: Vec<_> =
            found.into_iter().map(|((subnet, _), route)| (subnet, route)).collect();
        if wide.is_empty() {
            return found;
        }
        let taken = |block: IpNetwork| {
            let around = blocks_around(block).find_map(|it| wide.get(&it));
            let mut parts = wide.range(block..).take_while(|(part, _)| block.contains(part.ip()));
            let (key, route) = around.or_else(|| Some(parts.next()?.1))?;
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

fn has_gateway(object: &Object) -> bool {
    match object {
        Object::Nexthop(_) => true,
        Object::Route(route) => matches!(route.via, Via::Gateway(_) | Via::Nexthop(_)),
        _ => false,
    }
}
