//! What is said in the text format, and what is documented.

use std::path::Path;

use flannel_core::{Activity, Fault, FaultKind};
use flannel_firewall::{FirewallMode, FirewallReport};

use super::*;

fn full() -> Snapshot {
    let mut status = Status::default();
    let json = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
    status.config = Some(json.parse().unwrap());
    let mut backend = BackendReport::default();
    backend.properties.insert("engine".into(), "userspace".into());
    backend.counters.insert("packets_sent".into(), 44);
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
        node: Some(NodeId::new("a\"b").unwrap()),
        ready: true,
        status,
        remaining: Some(Duration::from_millis(2500)),
        started: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9)),
        resident: Some(4096),
        store: BTreeMap::from([("list", times)]),
        offline: None,
        outages: 1,
        backend,
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
        "flannel_backend_info{property=\"engine\",value=\"userspace\"} 1",
        "flannel_backend_events_total{event=\"packets_sent\"} 44",
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
    let nodes = |json: &str| node_metrics::subnets(&json.parse().unwrap(), None);
    let ipv6 = r#""EnableIPv6":true,"IPv6Network":"fd00::/60""#;
    assert_eq!(nodes(&format!(r#"{{"Network":"10.3.0.0/16",{ipv6}}}"#)), Some(15.0));
    assert_eq!(nodes(&format!(r#"{{"Network":"10.3.0.0/28",{ipv6}}}"#)), Some(3.0));
    assert_eq!(nodes(&format!(r#"{{"EnableIPv4":false,{ipv6}}}"#)), Some(15.0));
    let config = r#"{"Network":"10.244.0.0/16"}"#.parse().unwrap();
    for (held, expected) in
        [("10.244.7.0-24", 255.0), ("10.244.7.64-26", 1024.0), ("10.244.4.0-22", 64.0)]
    {
        assert_eq!(
            node_metrics::subnets(&config, Some(held.parse().unwrap())),
            Some(expected),
            "{held}"
        );
    }
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
