//! What was found, for the status.

use std::collections::BTreeMap;

use flannel_core::Subnet;
use flannel_netlink::state::IpFamily;
use flannel_probe::{Checksums, PathFinding, PathMtu};
use serde_json::{Value, json};

use super::Probed;

/// What was found, as JSON.
#[derive(Debug)]
pub(crate) struct Shown<'a>(pub(crate) &'a Probed);

impl Shown<'_> {
    /// All that is not about one peer.
    pub(crate) fn whole(&self) -> Value {
        let Probed { findings, software_checksums } = self.0;
        let mut states = BTreeMap::from(STATES.map(|state| (state, 0_u64)));
        for finding in findings.paths.values() {
            *states.entry(state(finding.mtu)).or_default() += 1;
        }
        json!({
            "paths": states,
            "faults": findings.faults,
            "software_checksums": software_checksums.iter().map(family).collect::<Vec<_>>(),
            "asked": findings.traffic.asked,
            "answered": findings.traffic.answered,
            "answers": findings.traffic.answers,
            "ignored": findings.traffic.ignored,
        })
    }

    /// The ways to one peer, by family.
    pub(crate) fn peer(&self, peer: &Subnet) -> Value {
        let families = IpFamily::ALL.iter().filter_map(|it| {
            let finding = self.0.findings.paths.get(&(*peer, *it))?;
            Some((family(it).to_owned(), path(finding)))
        });
        Value::Object(families.collect())
    }
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

fn path(finding: &PathFinding) -> Value {
    let less = match finding.mtu {
        PathMtu::Less(size) => Some(size),
        _ => None,
    };
    json!({
        "state": state(finding.mtu),
        "mtu": less,
        "needed": finding.needed,
        "underlay_checksums": checksums(finding.underlay),
        "overlay_checksums": checksums(finding.overlay),
    })
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
