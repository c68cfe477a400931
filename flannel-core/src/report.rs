//! What a sync did, in numbers and by name.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;

use crate::subnet::Subnet;

/// What one [`sync`](crate::Network::sync) read and wrote.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SyncReport {
    /// Kernel objects that were listed; 0 if the picture from before was still good.
    pub read: u64,
    /// Objects that were not there and are now.
    pub added: u64,
    /// Objects that were there with other values.
    pub replaced: u64,
    /// Our own objects that nobody needs any more.
    pub removed: u64,
    /// Objects that were seen among ours, are not ours, and were not touched.
    pub left_alone: u64,
    /// Objects that others had changed and that this sync found.
    pub drifted: u64,
    /// What others had changed since the sync before this one, and this sync has undone.
    pub repaired: Repaired,
    /// Objects that somebody keeps changing, and that wait for their next turn.
    pub postponed: u64,
    /// What was done to the firewall's rules; `None` if nobody keeps any.
    pub firewall: Option<FirewallReport>,
    /// How the routes of peers refer to their gateways; `None` if the backend has no such routes.
    pub routes: Option<RouteForm>,
    /// Peers that are not, or not fully, reachable after this sync, in the order of their subnets.
    pub problems: Vec<PeerProblem>,
}

impl SyncReport {
    /// How many objects were written, rules of the firewall among them.
    pub fn writes(&self) -> u64 {
        let firewall = self.firewall.as_ref().map_or(0, FirewallReport::writes);
        self.added + self.replaced + self.removed + firewall
    }

    /// Whether a later sync may succeed where this one failed.
    pub fn wants_retry(&self) -> bool {
        let refused = |problem: &PeerProblem| {
            matches!(problem.fault, PeerFault::Kernel { .. } | PeerFault::Unreachable { .. })
        };
        let firewall = self.firewall.as_ref().is_none_or(FirewallReport::is_exact);
        self.postponed > 0 || self.problems.iter().any(refused) || !firewall
    }
}

/// What one sync did to the rules of the firewall.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FirewallReport {
    /// Who keeps the rules; `None` if that is not known yet.
    pub mode: Option<FirewallMode>,
    /// Rules that were listed; 0 if nobody has touched them since the last sync.
    pub read: u64,
    /// Rules that were not there, or not in their place, and are now.
    pub added: u64,
    /// Rules of ours that were in a wrong place or that nobody needs any more.
    pub removed: u64,
    /// Chains whose rules others had changed and that this sync found.
    pub drifted: u64,
    /// Programs that were run since the report before, to look or to write.
    pub runs: u64,
    /// What could not be done.
    pub faults: Vec<FirewallFault>,
    /// What a person should know: settings of others that keep our rules from their effect.
    pub notes: Vec<String>,
}

impl FirewallReport {
    /// How many rules were written.
    pub fn writes(&self) -> u64 {
        self.added + self.removed
    }

    /// Whether the rules are as they should be.
    pub fn is_exact(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Who keeps the rules of the firewall.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum FirewallMode {
    /// Chains of iptables and ip6tables.
    Iptables,
    /// Tables of nftables.
    Nftables,
}

/// Something that the firewall needs and does not have.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("cannot {operation}: {reason}")]
#[non_exhaustive]
pub struct FirewallFault {
    /// What we wanted, with its object.
    pub operation: String,
    /// Why not, and what to do about it.
    pub reason: String,
}

impl FirewallFault {
    /// A fault in doing `operation`, which reads well after "cannot".
    pub fn new(operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { operation: operation.into(), reason: reason.into() }
    }
}

/// Changes by others that a sync has undone.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Repaired {
    /// How many, by kind of object: a word such as `route`.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// The first of them in words, at most [`EXAMPLES`](Self::EXAMPLES): who flushes a table removes thousands.
    pub examples: Vec<String>,
}

impl Repaired {
    /// How many changes are put into words.
    pub const EXAMPLES: usize = 8;

    /// Counts one more, and keeps `what` if there is room.
    pub fn add(&mut self, kind: &'static str, what: impl std::fmt::Display) {
        *self.by_kind.entry(kind).or_default() += 1;
        if self.examples.len() < Self::EXAMPLES {
            self.examples.push(what.to_string());
        }
    }
}

/// How a route refers to its gateway.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum RouteForm {
    /// By the number of a nexthop object, which stays fast with many peers. Linux 5.3 and newer.
    Nexthop,
    /// By itself. The kernel compares each of them with all others.
    Plain,
}

/// How packets reach one peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Transport {
    /// IPv4 packets; `None` if there is no way for them.
    pub ipv4: Option<RoutingMode>,
    /// IPv6 packets; `None` if there is no way for them.
    pub ipv6: Option<RoutingMode>,
    /// How the routes refer to their gateways; `None` if there are no such routes.
    pub routes: Option<RouteForm>,
    /// What carries the packets, in the backend's own words, such as `userspace`; `None` if it has no choice.
    pub carrier: Option<&'static str>,
}

impl Transport {
    /// A transport with these ways.
    pub fn new(
        ipv4: Option<RoutingMode>,
        ipv6: Option<RoutingMode>,
        routes: Option<RouteForm>,
    ) -> Self {
        Self { ipv4, ipv6, routes, carrier: None }
    }

    /// The same with a word for what carries the packets.
    #[must_use]
    pub fn carried_by(mut self, carrier: &'static str) -> Self {
        self.carrier = Some(carrier);
        self
    }
}

/// What is done to packets on their way to a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum RoutingMode {
    /// They go as they are, with the peer as gateway.
    Direct,
    /// They go inside of other packets.
    Encapsulated,
}

/// One peer that could not be served, and why.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeerProblem {
    /// The peer's subnet.
    pub peer: Subnet,
    /// The peer's public address, if it has one.
    pub address: Option<IpAddr>,
    /// What is wrong.
    pub fault: PeerFault,
}

impl PeerProblem {
    /// A problem with the peer that holds `peer` and is reached at `address`.
    pub fn new(peer: Subnet, address: Option<IpAddr>, fault: PeerFault) -> Self {
        Self { peer, address, fault }
    }
}

/// What is wrong with one peer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// What the peer published cannot be used.
    #[error("its lease cannot be used: {detail}")]
    BadData {
        /// What is wrong with it.
        detail: String,
    },
    /// The kernel refuses what this peer needs.
    #[error("cannot {operation}: {reason}")]
    Kernel {
        /// What we wanted, with its object.
        operation: String,
        /// The kernel's words.
        reason: String,
    },
    /// The peer published no address of a family that it has a subnet of.
    #[error("it has an {family} subnet and no {family} address")]
    NoAddress {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The peer uses another backend.
    #[error("it uses the backend {theirs:?}, not {ours:?}")]
    OtherBackend {
        /// Our backend's name.
        ours: &'static str,
        /// What the peer published; empty for none.
        theirs: String,
    },
    /// The lease must not be followed: it would harm this node or others.
    #[error("its lease is refused: {detail}")]
    Refused {
        /// Why.
        detail: String,
    },
    /// The kernel knows no way to the address that the peer published, which may be the peer's fault or that of our own link.
    #[error("cannot {operation}: {reason}")]
    Unreachable {
        /// What we wanted, with its object.
        operation: String,
        /// The kernel's words.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firewall_counts_as_a_part_of_the_whole() {
        let mut report = SyncReport { added: 1, ..SyncReport::default() };
        assert_eq!((report.writes(), report.wants_retry()), (1, false));
        let mut firewall = FirewallReport { added: 2, removed: 3, ..FirewallReport::default() };
        report.firewall = Some(firewall.clone());
        assert_eq!((report.writes(), report.wants_retry()), (6, false));
        firewall.faults.push(FirewallFault::new("add a rule", "no memory"));
        assert_eq!(firewall.faults[0].to_string(), "cannot add a rule: no memory");
        report.firewall = Some(firewall);
        assert!(report.wants_retry());
    }
}
