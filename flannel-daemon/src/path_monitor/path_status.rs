//! What was found on the paths to peers, for the status.

use std::collections::BTreeMap;

use flannel_core::Subnet;
use flannel_netlink::state::IpFamily;
use flannel_probe::{Checksums, PathFinding, PathMtu};
use serde::{Deserialize, Serialize};

use super::Probed;

/// What is known of the paths to all peers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ProbeStatus {
    /// How many paths there are by how large packets may be: `enough`, `less`, `no_answer`, `unknown`.
    pub paths: BTreeMap<String, u64>,
    /// Why peers are not asked.
    pub faults: Vec<String>,
    /// The families in whose tunnels checksums are computed in software.
    pub software_checksums: Vec<String>,
    /// Datagrams to peers.
    pub asked: u64,
    /// Of these, answered.
    pub answered: u64,
    /// Answers to peers.
    pub answers: u64,
    /// Datagrams that counted for nothing.
    pub ignored: u64,
}

/// What is known of the path to one peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PathStatus {
    /// How large packets may be: `enough`, `less`, `no_answer` or `unknown`.
    pub state: String,
    /// The path MTU if it is less than what is needed, bytes.
    pub mtu: Option<u32>,
    /// What is needed, bytes.
    pub needed: u32,
    /// Checksums that are left to the hardware, between the hosts: `corrupted`, `intact` or `unknown`.
    pub underlay_checksums: String,
    /// The same inside of the tunnel.
    pub overlay_checksums: String,
}

/// All that is not about one peer.
pub(crate) fn whole(probed: &Probed) -> ProbeStatus {
    let Probed { findings, software_checksums } = probed;
    let mut paths = BTreeMap::from(STATES.map(|state| (state.to_owned(), 0_u64)));
    for finding in findings.paths.values() {
        *paths.entry(state(finding.mtu).to_owned()).or_default() += 1;
    }
    ProbeStatus {
        paths,
        faults: findings.faults.iter().map(ToString::to_string).collect(),
        software_checksums: software_checksums.iter().map(|it| family(it).to_owned()).collect(),
        asked: findings.traffic.requests_sent,
        answered: findings.traffic.replies_received,
        answers: findings.traffic.replies_sent,
        ignored: findings.traffic.ignored,
    }
}

/// The paths to one peer, by family.
pub(crate) fn of_peer(probed: &Probed, peer: &Subnet) -> BTreeMap<String, PathStatus> {
    let families = IpFamily::ALL.iter().filter_map(|it| {
        let finding = probed.findings.paths.get(&(*peer, *it))?;
        Some((family(it).to_owned(), path(finding)))
    });
    families.collect()
}

/// The word for how large packets may be.
pub(crate) fn state(mtu: PathMtu) -> &'static str {
    match mtu {
        PathMtu::Enough => STATES[0],
        PathMtu::Less(_) => STATES[1],
        PathMtu::NoAnswer => STATES[2],
        _ => STATES[3],
    }
}

fn path(finding: &PathFinding) -> PathStatus {
    let mtu = match finding.mtu {
        PathMtu::Less(size) => Some(size),
        _ => None,
    };
    PathStatus {
        state: state(finding.mtu).into(),
        mtu,
        needed: finding.needed,
        underlay_checksums: checksums(finding.underlay).into(),
        overlay_checksums: checksums(finding.overlay).into(),
    }
}

fn family(family: &IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ipv4",
        IpFamily::V6 => "ipv6",
    }
}

fn checksums(checksums: Checksums) -> &'static str {
    match checksums {
        Checksums::Corrupted => "corrupted",
        Checksums::Intact => "intact",
        _ => "unknown",
    }
}

/// How large packets may be, in words.
const STATES: [&str; 4] = ["enough", "less", "no_answer", "unknown"];
