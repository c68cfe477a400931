//! What was found out.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_core::Subnet;
use flannel_netlink::state::IpFamily;

/// All that is known of the paths to peers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Findings {
    /// The paths, by peer and family.
    pub paths: BTreeMap<(Subnet, IpFamily), PathFinding>,
    /// What keeps us from asking or answering at one of our own addresses: a sentence each.
    pub faults: Vec<String>,
    /// What was sent and what came.
    pub traffic: Traffic,
}

/// What is known of one path to one peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct PathFinding {
    /// Where the peer is probed.
    pub address: IpAddr,
    /// The size of IP packets between the hosts that should pass, bytes.
    pub needed: u32,
    /// How large packets may be.
    pub mtu: PathMtu,
    /// Checksums of what goes from host to host as it is.
    pub underlay: Checksums,
    /// Checksums of what goes inside of a tunnel.
    pub overlay: Checksums,
}

/// How large packets may be on the path to a peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum PathMtu {
    /// As large as they should.
    Enough,
    /// At most so many bytes, which is less.
    Less(u32),
    /// The peer does not answer: nobody does there, or something is in between.
    NoAnswer,
    /// It was not probed yet.
    #[default]
    Unknown,
}

/// Whether packets arrive whose checksums are left to the hardware.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Checksums {
    /// They get lost, while those with computed checksums arrive.
    Corrupted,
    /// They arrive.
    Intact,
    /// It could not be found out.
    #[default]
    Unknown,
}

/// How many datagrams were sent and came.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Traffic {
    /// Requests that we sent.
    pub requests_sent: u64,
    /// Answers to them.
    pub replies_received: u64,
    /// Requests of peers that we answered.
    pub replies_sent: u64,
    /// Datagrams that were none of these, came from nobody we know, or were too many.
    pub ignored: u64,
}

impl PathFinding {
    /// A path of which only this is known.
    pub fn new(address: IpAddr, needed: u32, mtu: PathMtu) -> Self {
        let (underlay, overlay) = Default::default();
        Self { address, needed, mtu, underlay, overlay }
    }

    /// The same with what is known of checksums.
    #[must_use]
    pub fn with_checksums(self, underlay: Checksums, overlay: Checksums) -> Self {
        Self { underlay, overlay, ..self }
    }
}

impl Findings {
    /// Whether checksums inside of the tunnel of a family are corrupted on the path to any peer.
    pub fn corrupts_overlay(&self, family: IpFamily) -> bool {
        self.of(family).any(|finding| finding.overlay == Checksums::Corrupted)
    }

    /// The addresses with less than what is needed, and how much they take, bytes.
    pub fn limits(&self) -> BTreeMap<IpAddr, u32> {
        let limit = |finding: &PathFinding| match finding.mtu {
            PathMtu::Less(limit) => Some((finding.address, limit)),
            _ => None,
        };
        self.paths.values().filter_map(limit).collect()
    }

    fn of(&self, family: IpFamily) -> impl Iterator<Item = &PathFinding> {
        let of_family = move |it: &(&(Subnet, IpFamily), _)| it.0.1 == family;
        self.paths.iter().filter(of_family).map(|(_, finding)| finding)
    }
}
