//! What is wrong with single peers.

use std::{borrow::Cow, collections::BTreeMap, fmt, net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    fault::{FaultKind, unix_millis},
    subnet::Subnet,
};

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
        let (now, before) = (SystemTime::now(), KnownProblems::new(before));
        for problem in problems {
            problem.since = before.find(problem).map_or(now, |known| known.since);
        }
    }
}

/// The problems of one moment, to find them again in another: a partition makes as many problems as there are peers.
pub(crate) struct KnownProblems<'a>(BTreeMap<Subnet, Vec<&'a PeerProblem>>);

impl<'a> KnownProblems<'a> {
    pub(crate) fn new(problems: &'a [PeerProblem]) -> Self {
        let mut known = BTreeMap::<_, Vec<_>>::new();
        for problem in problems {
            known.entry(problem.peer).or_default().push(problem);
        }
        Self(known)
    }

    /// The same problem as `problem`, whenever it began.
    pub(crate) fn find(&self, problem: &PeerProblem) -> Option<&'a PeerProblem> {
        self.0.get(&problem.peer)?.iter().copied().find(|known| known.is_same(problem))
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
    /// Packets were sent to the peer, and no handshake with it was completed.
    #[error(
        "no handshake with it was completed for {seconds} s: PSK or key differs, or UDP port {port} is blocked"
    )]
    NoHandshake {
        /// For how long.
        seconds: u64,
        /// The peer's UDP port.
        port: u16,
    },
    /// The peer uses another backend.
    #[error("it uses the backend {theirs:?}, not {ours:?}")]
    OtherBackend {
        /// Our backend's name.
        ours: String,
        /// What the peer published; empty for none.
        theirs: String,
    },
    /// The kernel takes a route of somebody else to the peer's subnet or to a part of it, because that has a lower metric or a narrower
    /// destination.
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
            Self::NoHandshake { .. } => FaultKind::PeerUnresponsive,
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
            Self::NoHandshake { .. } => {
                Some("give all nodes the same PSK, and accept UDP to that port there")
            }
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
}
