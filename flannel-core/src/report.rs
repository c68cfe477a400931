//! What a sync did, in numbers and by name.

mod migration_report;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

pub use migration_report::{MigrationReport, WaitingPeer};

use crate::{Fault, PeerProblem};

/// What one [`sync`](crate::Network::sync) read and wrote.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct SyncReport {
    /// Kernel objects that were listed; 0 if the observed state from before was still good.
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
    /// Other things that were counted since the report before, by a name of the backend's choice such as `firewall_rules_added`.
    pub counters: BTreeMap<Cow<'static, str>, u64>,
    /// What the backend chose where it had a choice, by a name of its own such as `next_hops`.
    pub properties: BTreeMap<Cow<'static, str>, Cow<'static, str>>,
    /// What does not work for all peers, or for a whole address family.
    pub faults: Vec<Fault>,
    /// What a person should know: settings of others that keep our work from its effect.
    pub warnings: Vec<Warning>,
    /// What is wrong with peers that are not, or not fully, served after this sync, in the order of their subnets. A peer may have
    /// several problems.
    pub problems: Vec<PeerProblem>,
    /// How far the node is on its way from one backend to another, if it is.
    pub migration: Option<MigrationReport>,
}

impl SyncReport {
    /// How many objects were written.
    pub fn writes(&self) -> u64 {
        self.added + self.replaced + self.removed
    }

    /// Counts `count` more under `name`.
    pub fn count(&mut self, name: impl Into<Cow<'static, str>>, count: u64) {
        *self.counters.entry(name.into()).or_default() += count;
    }

    /// Whether a later sync may succeed where this one failed.
    pub fn wants_retry(&self) -> bool {
        self.postponed > 0
            || !self.faults.is_empty()
            || self.problems.iter().any(|problem| problem.fault.is_retryable())
    }

    /// Whether the data path as a whole is as it should be: no fault but those that concern some peers or one family.
    pub fn is_exact(&self) -> bool {
        self.faults.iter().all(|fault| fault.kind.is_partial())
    }

    /// How many peers have a problem.
    pub fn peers_with_problems(&self) -> usize {
        self.problems.iter().map(|problem| problem.peer).collect::<BTreeSet<_>>().len()
    }
}

/// What a backend says of itself at any moment, in its own words.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct BackendReport {
    /// What it is like, by name: `engine` is `userspace`.
    pub properties: BTreeMap<Cow<'static, str>, Cow<'static, str>>,
    /// What it has counted since it was made, by name: `packets_sent`.
    pub counters: BTreeMap<Cow<'static, str>, u64>,
    /// The same of each peer it has now, by the address that the peer is reached at; empty if the backend does not count them apart.
    pub peers: BTreeMap<IpAddr, BTreeMap<Cow<'static, str>, u64>>,
}

/// Something that works and may not do what is expected of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{object}: {text}")]
#[non_exhaustive]
pub struct Warning {
    /// What it concerns, such as `firewall`.
    pub object: String,
    /// What is the case, and what to do about it.
    pub text: String,
}

impl Warning {
    /// A warning about `object`.
    pub fn new(object: impl Into<String>, text: impl Into<String>) -> Self {
        Self { object: object.into(), text: text.into() }
    }
}

/// Changes by others that a sync has undone.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Repaired {
    /// How many, by kind of object: a word such as `route`.
    pub by_kind: BTreeMap<Cow<'static, str>, u64>,
    /// The first of them in words, at most [`EXAMPLES`](Self::EXAMPLES): who flushes a table removes thousands.
    pub examples: Vec<String>,
}

impl Repaired {
    /// How many changes are put into words.
    pub const EXAMPLES: usize = 8;

    /// Counts one more, and keeps `what` if there is room.
    pub fn add(&mut self, kind: impl Into<Cow<'static, str>>, what: impl fmt::Display) {
        *self.by_kind.entry(kind.into()).or_default() += 1;
        if self.examples.len() < Self::EXAMPLES {
            self.examples.push(what.to_string());
        }
    }
}

/// How packets reach one peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Transport {
    /// IPv4 packets; `None` if there is no way for them.
    pub ipv4: Option<RoutingMode>,
    /// IPv6 packets; `None` if there is no way for them.
    pub ipv6: Option<RoutingMode>,
    /// What carries the packets, in the backend's own words, such as `userspace`; `None` if it has no choice.
    pub carrier: Option<Cow<'static, str>>,
}

impl Transport {
    /// A transport of packets of either family.
    pub fn new(ipv4: Option<RoutingMode>, ipv6: Option<RoutingMode>) -> Self {
        Self { ipv4, ipv6, carrier: None }
    }

    /// The same with a word for what carries the packets.
    #[must_use]
    pub fn carried_by(mut self, carrier: impl Into<Cow<'static, str>>) -> Self {
        self.carrier = Some(carrier.into());
        self
    }
}

/// What is done to packets on their way to a peer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum RoutingMode {
    /// They go as they are, with the peer as gateway.
    Direct,
    /// They go inside of other packets.
    Encapsulated,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Family, FaultKind, PeerFault};

    #[test]
    fn what_a_retry_may_mend_is_retried_and_what_it_cannot_is_not() {
        let peer = |fault| PeerProblem::new("10.3.2.0-24".parse().unwrap(), None, fault);
        let kernel = PeerFault::Kernel { operation: "add a route".into(), reason: "no".into() };
        let plan = PeerFault::NoAddress { family: Family::Ipv6 };
        let mut report = SyncReport { added: 1, ..SyncReport::default() };
        assert_eq!((report.writes(), report.wants_retry(), report.is_exact()), (1, false, true));
        (report.replaced, report.removed) = (2, 4);
        assert_eq!(report.writes(), 7);
        report.problems = vec![peer(plan)];
        assert!(!report.wants_retry());
        report.problems.push(peer(kernel));
        assert!(report.wants_retry() && report.is_exact(), "behind a fault that stays");
        assert_eq!(report.peers_with_problems(), 1);

        let mut report = SyncReport { postponed: 1, ..SyncReport::default() };
        assert!(report.wants_retry());
        report = SyncReport::default();
        report.faults.push(Fault::new(
            FaultKind::FamilyUnusable,
            "IPv6",
            "serve IPv6",
            "no address",
        ));
        assert!(report.wants_retry() && report.is_exact(), "the other family is served");
        report.faults.push(Fault::new(FaultKind::KernelRefused, "firewall", "add a rule", "no"));
        assert!(!report.is_exact());
    }

    #[test]
    fn a_report_survives_its_json() {
        let mut report = SyncReport { added: 1, ..SyncReport::default() };
        report.count("firewall_rules_added", 2);
        report.count("firewall_rules_added", 3);
        report.properties.insert("firewall".into(), "nftables".into());
        report.repaired.add("route", "10.3.2.0/24 was removed");
        report.warnings.push(Warning::new("firewall", "br_netfilter is not loaded"));
        let ours = "vxlan".into();
        let fault = PeerFault::OtherBackend { ours, theirs: "udp".into() };
        report.problems.push(PeerProblem::new("10.3.2.0-24".parse().unwrap(), None, fault));
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#""firewall_rules_added":5"#), "{json}");
        assert_eq!(serde_json::from_str::<SyncReport>(&json).unwrap(), report);
    }
}
