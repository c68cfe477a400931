//! Numbers for Prometheus, in its text format. `docs/metrics.md` lists them; a test compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    time::{Duration, SystemTime},
};

use flannel_backend_udp::{Meter, Stats};
use flannel_core::{NetworkConfig, Status, SyncReport, Totals};
use flannel_firewall::FIREWALL;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    handle::{DaemonHandle, Facts},
    path_monitor::Probed,
    store_metrics::Times,
};

mod path_metrics;
mod udp_metrics;

/// A node's numbers at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    facts: Option<Facts>,
    ready: bool,
    status: Status,
    remaining: Option<Duration>,
    started: Option<SystemTime>,
    resident: Option<u64>,
    store: BTreeMap<&'static str, Times>,
    offline: Option<Duration>,
    outages: u64,
    /// Of the udp backend.
    udp: Option<Stats>,
    /// Of the ways to peers, if they are asked.
    probed: Option<Probed>,
}

/// All metrics of a node, in the order of docs/metrics.md. They print themselves in Prometheus' text format, version 0.0.4.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Metrics(pub Vec<MetricFamily>);

/// Numbers under one name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MetricFamily {
    /// The name.
    pub name: String,
    /// `counter`, `gauge` or `summary`.
    pub kind: String,
    /// What it says.
    pub help: String,
    /// The numbers: what follows the name in the text format, such as `{kind="added"}`, and the value.
    pub samples: Vec<(String, f64)>,
}

/// A family of numbers under one name.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: fn(&Snapshot) -> Vec<Sample>,
}

/// One number: what follows the name, and the value.
struct Sample(String, f64);

impl Snapshot {
    pub(crate) fn take(daemon: &DaemonHandle, at: SystemTime, now: Instant) -> Self {
        let status = daemon.status().unwrap_or_default();
        let journal = daemon.journal();
        let facts = daemon.facts();
        Self {
            udp: facts.as_ref().and_then(|facts| facts.udp.as_ref()).map(Meter::stats),
            facts,
            ready: daemon.readiness().is_ready(),
            remaining: status.trusted_until.map(|until| until.saturating_duration_since(now)),
            started: Some(daemon.started().min(at)),
            resident: resident(),
            store: daemon.store_metrics().all(),
            offline: journal.offline(now),
            outages: journal.outages(),
            probed: daemon.probes(),
            status,
        }
    }
}

/// All that there is something to say of.
pub(crate) fn collect(snapshot: &Snapshot) -> Metrics {
    let families = all().map(|metric| MetricFamily {
        name: metric.name.into(),
        kind: metric.kind.into(),
        help: metric.help.into(),
        samples: (metric.samples)(snapshot).into_iter().map(|it| (it.0, it.1)).collect(),
    });
    Metrics(families.filter(|family| !family.samples.is_empty()).collect())
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for MetricFamily { name, kind, help, samples } in &self.0 {
            writeln!(f, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
            for (rest, value) in samples {
                writeln!(f, "{name}{rest} {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
fn render(snapshot: &Snapshot) -> String {
    collect(snapshot).to_string()
}

/// What this process keeps in memory, in bytes.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

fn one(value: f64) -> Vec<Sample> {
    vec![Sample(String::new(), value)]
}

fn switch(on: bool) -> Vec<Sample> {
    one(f64::from(u8::from(on)))
}

fn count(value: u64) -> Vec<Sample> {
    one(value as f64)
}

fn some(value: Option<f64>) -> Vec<Sample> {
    value.map_or_else(Vec::new, one)
}

fn labelled(label: &str, name: &str, value: f64) -> Sample {
    Sample(format!("{{{label}=\"{}\"}}", escaped(name)), value)
}

fn by_kind(kinds: &[(&str, u64)]) -> Vec<Sample> {
    kinds.iter().map(|(kind, count)| labelled("kind", kind, *count as f64)).collect()
}

/// What the report of a data path with a firewall says; nothing if the node keeps none.
fn of_firewall(it: &Snapshot, samples: impl FnOnce(&SyncReport) -> Vec<Sample>) -> Vec<Sample> {
    let report = it.status.last_sync.as_ref().filter(|it| it.properties.contains_key(FIREWALL));
    report.map_or_else(Vec::new, samples)
}

/// What a backend has counted under `name`.
fn counter(it: &Snapshot, name: &str) -> u64 {
    it.status.totals.counters.get(name).copied().unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All there are, in the order of the page.
fn all() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().chain(udp_metrics::METRICS).chain(path_metrics::METRICS).chain(PROCESS)
}

const METRICS: &[Metric] = &[
    Metric {
        name: "flannel_info",
        kind: "gauge",
        help: "1, with the version, the backend and the node's name.",
        samples: |it| {
            it.facts.as_ref().map_or_else(Vec::new, |facts| {
                let (backend, node) = (facts.config.backend().kind(), facts.id.as_str());
                let labels = format!(
                    "{{version=\"{}\",backend=\"{}\",node=\"{}\"}}",
                    env!("CARGO_PKG_VERSION"),
                    escaped(backend),
                    escaped(node)
                );
                vec![Sample(labels, 1.0)]
            })
        },
    },
    Metric {
        name: "flannel_ready",
        kind: "gauge",
        help: "Whether pods can be served: 1 if /readyz says so.",
        samples: |it| switch(it.ready),
    },
    Metric {
        name: "flannel_lease_held",
        kind: "gauge",
        help: "Whether this node holds a lease that cannot be somebody else's.",
        samples: |it| switch(it.status.trusts_lease()),
    },
    Metric {
        name: "flannel_lease_remaining_seconds",
        kind: "gauge",
        help: "How long the lease is good for without another renewal; absent if it does not expire.",
        samples: |it| some(it.remaining.map(|left| left.as_secs_f64())),
    },
    Metric {
        name: "flannel_mtu_bytes",
        kind: "gauge",
        help: "The largest packet that a pod may send.",
        samples: |it| some(it.status.mtu.map(f64::from)),
    },
    Metric {
        name: "flannel_peers",
        kind: "gauge",
        help: "Other nodes with a lease; absent until the store has said so.",
        samples: |it| some(it.status.peers.map(|peers| peers as f64)),
    },
    Metric {
        name: "flannel_network_subnets",
        kind: "gauge",
        help: "For how many nodes the network has subnets, in the family that has fewer.",
        samples: |it| some(it.facts.as_ref().and_then(|facts| subnets(&facts.config))),
    },
    Metric {
        name: "flannel_peers_unserved",
        kind: "gauge",
        help: "Peers that are not, or not fully, reachable after the last sync.",
        samples: |it| some(it.status.last_sync.as_ref().map(|sync| sync.problems.len() as f64)),
    },
    Metric {
        name: "flannel_leases_refused",
        kind: "gauge",
        help: "Leases that are not followed because they would harm this node.",
        samples: |it| count(it.status.refused.len() as u64),
    },
    Metric {
        name: "flannel_in_sync",
        kind: "gauge",
        help: "Whether the data path matched all peers after the last sync.",
        samples: |it| switch(it.status.in_sync),
    },
    Metric {
        name: "flannel_firewall_exact",
        kind: "gauge",
        help: "Whether the rules of the firewall are as they should be; absent if the node keeps none.",
        samples: |it| {
            of_firewall(it, |it| switch(it.faults.iter().all(|fault| fault.object != FIREWALL)))
        },
    },
    Metric {
        name: "flannel_firewall_info",
        kind: "gauge",
        help: "1, with who keeps the rules: iptables or nftables; absent if nobody can.",
        samples: |it| {
            of_firewall(it, |it| match &*it.properties[FIREWALL] {
                "none" => Vec::new(),
                mode => vec![labelled("mode", mode, 1.0)],
            })
        },
    },
    Metric {
        name: "flannel_firewall_hindrances",
        kind: "gauge",
        help: "Settings of others that keep our rules from their effect; /readyz names them.",
        samples: |it| {
            let of_rules = |it: &SyncReport| {
                it.warnings.iter().filter(|warning| warning.object == FIREWALL).count()
            };
            of_firewall(it, |it| count(of_rules(it) as u64))
        },
    },
    Metric {
        name: "flannel_firewall_rule_writes_total",
        kind: "counter",
        help: "Rules of the firewall that were written, by kind of write.",
        samples: |it| {
            let rules = |what| counter(it, &format!("firewall_rules_{what}"));
            by_kind(&[("added", rules("added")), ("removed", rules("removed"))])
        },
    },
    Metric {
        name: "flannel_firewall_program_runs_total",
        kind: "counter",
        help: "How often a program of iptables was run until the last sync, to look or to write.",
        samples: |it| count(counter(it, "firewall_program_runs")),
    },
    Metric {
        name: "flannel_faults",
        kind: "gauge",
        help: "1 for each thing that does not work now and is tried again.",
        samples: |it| {
            let activities: BTreeSet<_> =
                it.status.faults.iter().map(|fault| fault.activity).collect();
            let words = activities.into_iter().filter_map(|it| serde_json::to_value(it).ok());
            let words: Vec<_> = words.filter_map(|word| word.as_str().map(str::to_owned)).collect();
            words.iter().map(|word| labelled("activity", word, 1.0)).collect()
        },
    },
    Metric {
        name: "flannel_syncs_total",
        kind: "counter",
        help: "How often the data path was compared with the peers.",
        samples: |it| count(it.status.syncs),
    },
    Metric {
        name: "flannel_kernel_reads_total",
        kind: "counter",
        help: "Kernel objects that were listed.",
        samples: |it| count(it.status.totals.read),
    },
    Metric {
        name: "flannel_kernel_writes_total",
        kind: "counter",
        help: "Kernel objects that were written, by kind of write.",
        samples: |it| {
            let &Totals { added, replaced, removed, .. } = &it.status.totals;
            by_kind(&[("added", added), ("removed", removed), ("replaced", replaced)])
        },
    },
    Metric {
        name: "flannel_drift_repaired_total",
        kind: "counter",
        help: "Changes by others that were undone, by kind of kernel object.",
        samples: |it| {
            let kinds = it.status.repaired.iter();
            kinds.map(|(kind, count)| labelled("kind", kind, *count as f64)).collect()
        },
    },
    Metric {
        name: "flannel_store_request_duration_seconds",
        kind: "summary",
        help: "How long the store took to answer, by operation.",
        samples: |it| {
            let operations = it.store.iter().flat_map(|(operation, times)| {
                let labels = format!("{{operation=\"{operation}\"}}");
                [
                    Sample(format!("_sum{labels}"), times.total.as_secs_f64()),
                    Sample(format!("_count{labels}"), times.calls as f64),
                ]
            });
            operations.collect()
        },
    },
    Metric {
        name: "flannel_store_request_failures_total",
        kind: "counter",
        help: "Requests that the store did not answer, or refused, by operation.",
        samples: |it| {
            let operations = it.store.iter();
            operations
                .map(|(name, times)| labelled("operation", name, times.failures as f64))
                .collect()
        },
    },
    Metric {
        name: "flannel_store_outage_seconds",
        kind: "gauge",
        help: "How long the store has not answered; 0 while it does.",
        samples: |it| one(it.offline.unwrap_or_default().as_secs_f64()),
    },
    Metric {
        name: "flannel_store_outages_total",
        kind: "counter",
        help: "How often the store stopped answering.",
        samples: |it| count(it.outages),
    },
];

const PROCESS: &[Metric] = &[
    Metric {
        name: "process_start_time_seconds",
        kind: "gauge",
        help: "When this process was started, in seconds since 1970.",
        samples: |it| {
            let since = it.started.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            some(since.map(|since| since.as_secs_f64()))
        },
    },
    Metric {
        name: "process_resident_memory_bytes",
        kind: "gauge",
        help: "What this process keeps in memory.",
        samples: |it| some(it.resident.map(|bytes| bytes as f64)),
    },
];

/// For how many nodes there are subnets.
fn subnets(config: &NetworkConfig) -> Option<f64> {
    let ipv4 = config.ipv4().map(|range| range.count());
    let ipv6 = config.ipv6().map(|range| range.count());
    ipv4.into_iter().chain(ipv6).min().map(|count| count as f64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use flannel_core::{Activity, Fault, FaultKind, NodeId};
    use flannel_firewall::{FirewallMode, FirewallReport};

    use super::*;

    fn full() -> Snapshot {
        let mut status = Status::default();
        (status.mtu, status.peers, status.syncs) = (Some(1450), Some(3), 7);
        let fault = Fault::new(FaultKind::StoreAway, "store", "watch leases", "refused");
        status.faults.push(fault.during(Activity::Watch));
        status.repaired.insert("route".into(), 2);
        status.totals.added = 12;
        let mut sync = SyncReport::default();
        let mut firewall = FirewallReport::default();
        firewall.mode = Some(FirewallMode::Nftables);
        firewall.notes.push("a chain drops".into());
        (firewall.added, firewall.runs) = (8, 3);
        firewall.add_to(&mut sync);
        status.totals.counters = sync.counters.clone();
        status.last_sync = Some(sync);
        let times = Times { calls: 4, failures: 1, total: Duration::from_millis(1500) };
        Snapshot {
            facts: Some(Facts {
                id: NodeId::new("a\"b").unwrap(),
                config: r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#.parse().unwrap(),
                store: String::new(),
                udp: None,
            }),
            ready: true,
            status,
            remaining: Some(Duration::from_millis(2500)),
            started: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9)),
            resident: Some(4096),
            store: BTreeMap::from([("list", times)]),
            offline: None,
            outages: 1,
            udp: Some(udp_metrics::tests::stats()),
            probed: Some(path_metrics::tests::probed()),
        }
    }

    #[test]
    fn numbers_are_written_as_prometheus_reads_them() {
        let text = render(&full());
        let version = env!("CARGO_PKG_VERSION");
        for line in [
            &format!("flannel_info{{version=\"{version}\",backend=\"vxlan\",node=\"a\\\"b\"}} 1"),
            "# HELP flannel_ready Whether pods can be served: 1 if /readyz says so.",
            "# TYPE flannel_ready gauge",
            "flannel_ready 1",
            "flannel_lease_held 0",
            "flannel_lease_remaining_seconds 2.5",
            "flannel_network_subnets 255",
            "flannel_faults{activity=\"watch\"} 1",
            "flannel_kernel_writes_total{kind=\"added\"} 12",
            "flannel_drift_repaired_total{kind=\"route\"} 2",
            "flannel_firewall_exact 1",
            "flannel_firewall_info{mode=\"nftables\"} 1",
            "flannel_firewall_hindrances 1",
            "flannel_firewall_rule_writes_total{kind=\"added\"} 8",
            "flannel_firewall_rule_writes_total{kind=\"removed\"} 0",
            "flannel_firewall_program_runs_total 3",
            "flannel_store_request_duration_seconds_sum{operation=\"list\"} 1.5",
            "flannel_store_request_duration_seconds_count{operation=\"list\"} 4",
            "flannel_store_request_failures_total{operation=\"list\"} 1",
            "flannel_store_outage_seconds 0",
            "process_start_time_seconds 9",
            "process_resident_memory_bytes 4096",
        ] {
            assert!(text.lines().any(|it| it == line), "no line {line:?} in:\n{text}");
        }
        assert!(resident().is_some_and(|bytes| bytes > 100_000));
    }

    #[test]
    fn the_family_with_fewer_subnets_says_how_many_nodes_fit() {
        let nodes = |json: &str| subnets(&json.parse().unwrap());
        let ipv6 = r#""EnableIPv6":true,"IPv6Network":"fd00::/60""#;
        assert_eq!(nodes(&format!(r#"{{"Network":"10.3.0.0/16",{ipv6}}}"#)), Some(15.0));
        assert_eq!(nodes(&format!(r#"{{"Network":"10.3.0.0/28",{ipv6}}}"#)), Some(3.0));
        assert_eq!(nodes(&format!(r#"{{"EnableIPv4":false,{ipv6}}}"#)), Some(15.0));
    }

    #[test]
    fn names_follow_the_conventions() {
        for Metric { name, kind, help, samples } in all() {
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
            assert!(name.starts_with("flannel_") || name.starts_with("process_"), "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}");
            assert!(!samples(&full()).is_empty(), "{name} is never shown");
        }
    }

    #[test]
    fn the_documentation_lists_exactly_these() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let text = fs::read_to_string(path).unwrap();
        let listed: Vec<_> = text.lines().filter(|line| line.starts_with("| `")).collect();
        let row = |it: &Metric| format!("| `{}` | {} | {} |", it.name, it.kind, it.help);
        assert_eq!(listed, all().map(row).collect::<Vec<_>>());
    }
}
