//! What a sync did, in numbers and by name.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    fault::{Fault, FaultKind, unix_millis},
    subnet::Subnet,
};

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

/// One peer that could not be served, and why.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeerProblem {
    /// The peer's subnet.
    pub peer: Subnet,
    /// The peer's public address, if it has one.
    pub address: Option<IpAddr>,
    /// What is wrong.
    pub fault: PeerFault,
    /// What somebody can do about it, if that is known.
    pub remedy: Option<Cow<'static, str>>,
    /// Since when. Serialized as milliseconds since the Unix epoch.
    #[serde(with = "unix_millis")]
    pub since: SystemTime,
}

impl PeerProblem {
    /// A problem with the peer that holds `peer` and is reached at `address`.
    ///
    /// The node sets [`since`](Self::since) when it first sees the problem.
    pub fn new(peer: Subnet, address: Option<IpAddr>, fault: PeerFault) -> Self {
        let remedy = fault.remedy().map(Cow::Borrowed);
        Self { peer, address, fault, remedy, since: SystemTime::UNIX_EPOCH }
    }

    /// Whether both are the same problem, perhaps seen at different times.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.peer, self.address, &self.fault) == (other.peer, other.address, &other.fault)
    }

    /// Makes each of `problems` as old as it was `before`, or new now.
    pub(crate) fn keep_since(problems: &mut [Self], before: &[Self]) {
        let now = SystemTime::now();
        let known: BTreeMap<_, Vec<_>> = before.iter().fold(BTreeMap::new(), |mut known, it| {
            known.entry(it.peer).or_insert_with(Vec::new).push(it);
            known
        });
        for problem in problems {
            let same = known.get(&problem.peer).into_iter().flatten();
            problem.since =
                same.filter(|it| it.is_same(problem)).map(|it| it.since).next().unwrap_or(now);
        }
    }
}

/// What is wrong with one peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
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
        /// Which family.
        family: Family,
    },
    /// The peer uses another backend.
    #[error("it uses the backend {theirs:?}, not {ours:?}")]
    OtherBackend {
        /// Our backend's name.
        ours: String,
        /// What the peer published; empty for none.
        theirs: String,
    },
    /// The kernel takes a route of somebody else to the peer's subnet, because it has a lower metric.
    #[error(
        "packets to it take another route than ours: {route}; remove that, or give it a higher metric"
    )]
    Overridden {
        /// The other route, as `ip route` shows it or nearly so.
        route: String,
    },
    /// The way to the peer takes too little for a family, which is therefore not served.
    #[error(
        "the path to it takes {path_mtu} bytes and {family} needs {needed}: packets of that family are refused; raise the MTU between the hosts"
    )]
    PathTooNarrow {
        /// Which family.
        family: Family,
        /// How large a packet between the hosts may be, bytes.
        path_mtu: u32,
        /// How large it would have to be, bytes.
        needed: u32,
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

impl PeerFault {
    /// Which kind of fault it is.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::BadData { .. } | Self::OtherBackend { .. } | Self::Refused { .. } => {
                FaultKind::PeerUnusable
            }
            Self::Kernel { .. } => FaultKind::KernelRefused,
            Self::NoAddress { .. } => FaultKind::AddressMissing,
            Self::Overridden { .. } | Self::Unreachable { .. } => FaultKind::PeerUnreachable,
            Self::PathTooNarrow { .. } => FaultKind::FamilyUnusable,
        }
    }

    /// What somebody can do about it, if that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::BadData { .. } => {
                Some("start the node there again, so that it publishes its lease anew")
            }
            Self::NoAddress { .. } => Some(
                "give the node there an address of that family, or --public-ip or --public-ipv6",
            ),
            Self::OtherBackend { .. } => {
                Some("start the node there again, so that it reads the network's configuration")
            }
            Self::Overridden { .. } => Some("remove that route, or give it a higher metric"),
            Self::PathTooNarrow { .. } => Some("raise the MTU between the hosts"),
            Self::Refused { .. } => Some("release the lease if no node holds it"),
            Self::Unreachable { .. } => Some("give this host a route to the peer's address"),
            Self::Kernel { .. } => None,
        }
    }

    /// Whether a later sync may succeed although the peer's lease is the same.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Kernel { .. } | Self::Unreachable { .. })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    Ipv4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    Ipv6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_retry_may_mend_is_retried_and_what_it_cannot_is_not() {
        let peer = |fault| PeerProblem::new("10.3.2.0-24".parse().unwrap(), None, fault);
        let kernel = PeerFault::Kernel { operation: "add a route".into(), reason: "no".into() };
        let plan = PeerFault::NoAddress { family: Family::Ipv6 };
        let mut report = SyncReport { added: 1, ..SyncReport::default() };
        assert_eq!((report.writes(), report.wants_retry(), report.is_exact()), (1, false, true));
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
    fn a_problem_is_as_old_as_it_was_and_says_what_to_do() {
        let problem = |n: u8, family| {
            let peer = format!("10.3.{n}.0-24").parse().unwrap();
            PeerProblem::new(peer, None, PeerFault::NoAddress { family })
        };
        let early = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(9);
        let mut before = [problem(1, Family::Ipv4), problem(1, Family::Ipv6)];
        before.iter_mut().for_each(|it| it.since = early);
        let mut now = [problem(1, Family::Ipv6), problem(2, Family::Ipv6)];
        PeerProblem::keep_since(&mut now, &before);
        assert_eq!(now[0], before[1]);
        assert!(now[1].since > early);
        assert!(now[1].remedy.as_deref().is_some_and(|it| it.contains("--public-ipv6")));
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
