//! Every benchmark once, with sizes that say nothing: they run, and fill their tables.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::process::Command;

use serde_json::Value;

/// Runs a benchmark and returns its tables, none of whose rows may have had trouble.
fn bench(args: &str) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-bench"));
    command.args(args.split(' ')).args(["--runs", "1", "--json", "-"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("run 1/1: "), "progress: {stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tables = report["tables"].as_array().unwrap().clone();
    for row in tables.iter().flat_map(|table| table["rows"].as_array().unwrap()) {
        assert_eq!(row["troubles"], Value::Array(Vec::new()), "{row}");
    }
    tables
}

/// What was measured in one row, which has to be there and above zero.
fn sample(table: &Value, row: &str, column: &str) -> f64 {
    let rows = table["rows"].as_array().unwrap();
    let row = rows.iter().find(|it| it["name"] == row).unwrap_or_else(|| panic!("{table}"));
    let sample = row["cells"][column]["median"].as_f64().unwrap_or_else(|| panic!("{row}"));
    assert!(sample > 0.0, "{column} of {row}");
    sample
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn convergence_is_measured_beside_its_references() {
    let tables = bench("converge --peers 20 --updates 2 --idle 0.1 --backend host-gw,vxlan");
    let [converge, node, updates, vxlan, _, _] = &tables[..] else { panic!("{tables:?}") };
    for row in ["flannel-node", "applier alone", "ip -batch, plain routes"] {
        sample(vxlan, row, "start to last object");
    }
    let time = |row| sample(converge, row, "start to last object");
    assert!(time("flannel-node") > time("requests alone, no picture"));
    for row in
        ["applier alone", "store read alone", "ip -batch, same objects", "ip -batch, plain routes"]
    {
        time(row);
    }
    sample(node, "flannel-node", "peak memory");
    sample(updates, "flannel-node", "added, p50");
    sample(updates, "applier alone", "removed, p50");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn throughput_is_measured_beside_paths_made_by_hand() {
    let tables = bench("throughput --duration 0.2 --round-trips 50 --only static,vxlan,host-gw");
    for row in ["static routes, by hand", "vxlan, by hand", "host-gw"] {
        for column in ["TCP, 1 stream", "64-byte UDP received", "RTT p50", "TCP of raw"] {
            sample(&tables[0], row, column);
        }
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn throughput_over_ipv6_has_a_table_of_its_own() {
    let tables =
        bench("throughput --duration 0.2 --round-trips 50 --family 4,6 --only static,host-gw");
    let titles: Vec<_> = tables.iter().map(|table| table["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["pod to pod", "pod to pod, IPv6"]);
    for table in &tables {
        sample(table, "host-gw", "TCP of raw");
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn throughput_of_masqueraded_pods_has_a_table_of_its_own() {
    let arguments = "--duration 0.2 --round-trips 50 --between masqueraded --only static,host-gw";
    let tables = bench(&format!("throughput {arguments}"));
    assert_eq!(tables[0]["title"], "pod to pod, masqueraded");
    sample(&tables[0], "host-gw", "TCP of raw");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn another_program_is_measured_in_the_same_run() {
    let node = env!("CARGO_BIN_EXE_flannel-bench").replace("flannel-bench", "flannel-node");
    let tables = bench(&format!("footprint --peers 3 --idle 0.1 --peer other={node}"));
    for row in ["host-gw", "host-gw, other"] {
        for column in ["start to subnet.env", "resident memory", "threads"] {
            sample(&tables[0], row, column);
        }
    }
    let size = |row| sample(&tables[1], row, "size of the file");
    assert_eq!(size("flannel-node"), size("other"));
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn recovery_is_measured_for_each_fault() {
    let tables = bench(
        "recover --backend vxlan --meddling 0.3 --restarts 2 --only route,address,link,turns,device,wrong,back",
    );
    for row in [
        "route deleted",
        "nexthop to a wrong gateway",
        "neighbour with a wrong MAC",
        "forwarding entry to a wrong host",
        "device deleted",
        "device down and up",
        "device address replaced",
        "address changed",
        "link down and up",
        "backend changed and back",
        "VNI changed and back",
    ] {
        sample(&tables[0], row, "packets flow after");
        sample(&tables[0], row, "state exact after");
    }
    sample(&tables[0], "route deleted every 100 ms", "probes lost");
    sample(&tables[0], "restarts, SIGKILL and SIGTERM in turns", "longest gap");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn acquisition_is_measured_for_many_nodes_and_for_many_leases() {
    let tables = bench("acquire --nodes 5 --leases 0,50 --store file,etcd");
    let [together, none, fifty, together_etcd, none_etcd, fifty_etcd] = &tables[..] else {
        panic!("{tables:?}")
    };
    for table in [together, together_etcd] {
        sample(table, "host-gw", "until all are ready");
    }
    for table in [none, fifty, none_etcd, fifty_etcd] {
        sample(table, "host-gw", "start to lease");
        sample(table, "host-gw", "peak memory");
        sample(table, "store read alone", "start to lease");
        sample(table, "plain read", "start to lease");
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn leases_in_etcd_converge_as_those_in_files() {
    let tables = bench("converge --peers 70 --updates 2 --idle 0.1 --backend vxlan --store etcd");
    for row in ["flannel-node", "applier alone", "store read alone", "plain read of the store"] {
        sample(&tables[0], row, "start to last object");
    }
    sample(&tables[2], "flannel-node", "removed, p50");
    assert_eq!(tables[0]["title"], "converge, vxlan, 70 peers, etcd");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_program_that_is_no_node_is_named_with_what_it_said() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-bench"));
    command.args([
        "footprint",
        "--runs",
        "1",
        "--peers",
        "0",
        "--idle",
        "0.1",
        "--peer",
        "no=/bin/false",
    ]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("! host-gw, no: run 1: the node ended with exit status: 1"), "{text}");
}
