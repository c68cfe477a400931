//! Numbers of the ways to peers.

use std::collections::BTreeMap;

use flannel_probe::{Checksums, Findings, PathFinding};

use super::{Metric, Snapshot, each, some, switch};
use crate::path_monitor::state;

fn findings(it: &Snapshot) -> Option<&Findings> {
    it.probed.as_ref().map(|probed| &*probed.findings)
}

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "flannel_paths",
        kind: "gauge",
        help: "Ways to peers by how large packets may be, as asked with --probe-peers: enough, less, no_answer, unknown.",
        samples: |it| {
            let mut states = BTreeMap::new();
            for finding in findings(it).into_iter().flat_map(|findings| findings.paths.values()) {
                *states.entry(state(finding.mtu)).or_insert(0) += 1;
            }
            each("state", states)
        },
    },
    Metric {
        name: "flannel_path_mtu_bytes",
        kind: "gauge",
        help: "The smallest path MTU that was found to a peer; absent while all take what is needed.",
        samples: |it| {
            let limits =
                findings(it).into_iter().flat_map(Findings::limits).map(|(_, limit)| limit);
            some(limits.min().map(f64::from))
        },
    },
    Metric {
        name: "flannel_paths_corrupted",
        kind: "gauge",
        help: "Ways to peers on which packets get lost whose checksums are left to the hardware, between hosts or inside of tunnels.",
        samples: |it| {
            let Some(findings) = findings(it) else { return Vec::new() };
            let corrupted = |layer: fn(&PathFinding) -> Checksums| {
                let all = findings.paths.values().map(layer);
                all.filter(|checksums| *checksums == Checksums::Corrupted).count() as u64
            };
            let layers = [
                ("overlay", corrupted(|it| it.overlay)),
                ("underlay", corrupted(|it| it.underlay)),
            ];
            each("layer", layers)
        },
    },
    Metric {
        name: "flannel_software_checksums",
        kind: "gauge",
        help: "Whether checksums of what enters the tunnel are computed in software because they were found damaged.",
        samples: |it| {
            it.probed.as_ref().map_or_else(Vec::new, |it| switch(!it.software_checksums.is_empty()))
        },
    },
    Metric {
        name: "flannel_path_datagrams_total",
        kind: "counter",
        help: "Datagrams of --probe-peers: asked and answered by peers, answers to peers, and ignored.",
        samples: |it| {
            let Some(Findings { traffic, .. }) = findings(it) else { return Vec::new() };
            let kinds = [
                ("answered", traffic.replies_received),
                ("answers", traffic.replies_sent),
                ("asked", traffic.requests_sent),
                ("ignored", traffic.ignored),
            ];
            each("kind", kinds)
        },
    },
];

#[cfg(test)]
pub(super) mod tests {
    use flannel_netlink::state::IpFamily;
    use flannel_probe::PathMtu;

    use super::*;
    use crate::path_monitor::Probed;

    pub(in crate::metrics) fn probed() -> Probed {
        let mut findings = Findings::default();
        let address = [192, 0, 2, 2].into();
        let path = PathFinding::new(address, 1500, PathMtu::Less(1400));
        let path = path.with_checksums(Checksums::Intact, Checksums::Corrupted);
        findings.paths.insert(("10.3.2.0-24".parse().unwrap(), IpFamily::V4), path);
        findings.traffic.requests_sent = 9;
        Probed { findings: findings.into(), ..Probed::default() }
    }

    #[test]
    fn ways_to_peers_are_counted_by_what_was_found() {
        let text =
            super::super::render(&Snapshot { probed: Some(probed()), ..Snapshot::default() });
        for line in [
            "flannel_paths{state=\"less\"} 1",
            "flannel_path_mtu_bytes 1400",
            "flannel_paths_corrupted{layer=\"overlay\"} 1",
            "flannel_paths_corrupted{layer=\"underlay\"} 0",
            "flannel_software_checksums 0",
            "flannel_path_datagrams_total{kind=\"asked\"} 9",
        ] {
            assert!(text.lines().any(|it| it == line), "no line {line:?} in:\n{text}");
        }
        assert!(!super::super::render(&Snapshot::default()).contains("flannel_path"));
    }
}
