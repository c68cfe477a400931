//! flanneld gets a host back.
#![expect(clippy::disallowed_methods, reason = "these tests are about the programs themselves")]

use std::process::Command;

use flannel_testbed::{Pod, Process, eventually, probe, soon};

use super::support::{Cluster, dual};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn what_is_kept_for_flanneld_is_its_own_and_loses_nothing_by_vxlan() {
    kept(&dual("vxlan")).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn what_is_kept_for_flanneld_is_its_own_and_loses_nothing_by_host_gw() {
    kept(&dual("host-gw")).await;
}

async fn kept(network: &str) {
    let (cluster, pods, mut theirs) = flannelds(network).await;
    let as_flanneld_makes_it = state(&cluster).await;
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 100).unwrap();
    end(theirs[0].process()).await;
    let mut ours = cluster.start_ours(0).await;
    assert_ne!(state(&cluster).await, as_flanneld_makes_it, "ours is another state");
    end(&mut ours).await;
    let mut teardown = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
    teardown.args(["teardown", "--keep-traffic", "--etcd-endpoints", cluster.etcd.url()]);
    teardown.arg("--subnet-file").arg(cluster.subnet_file(0));
    cluster.host(0).run(teardown).await.unwrap();
    assert_same(&as_flanneld_makes_it, &state(&cluster).await, "kept");

    theirs[0] = cluster.start_theirs(0).await;
    soon(streams.flowing()).await;
    let report = streams.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    assert_same(&as_flanneld_makes_it, &state(&cluster).await, "after flanneld's start");
    serves_a_new_peer(&cluster, pods).await;
    moves_and_removes_it(&cluster).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn what_is_left_without_teardown_obeys_flanneld_by_vxlan() {
    left(&dual("vxlan")).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn what_is_left_without_teardown_obeys_flanneld_by_host_gw() {
    left(&dual("host-gw")).await;
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and the real flanneld: run ./ci.sh flanneld as root"]
async fn tun_what_is_left_without_teardown_obeys_flanneld_by_udp() {
    for engine in ["userspace", "ebpf"] {
        left(&format!(
            r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"udp","Engine":"{engine}"}}}}"#
        ))
        .await;
    }
}

/// Our program just ends, and flanneld starts.
async fn left(network: &str) {
    let (cluster, pods, mut theirs) = flannelds(network).await;
    end(theirs[0].process()).await;
    let mut ours = cluster.start_ours(0).await;
    eventually(async || probe::reachability(&pods).await.complete()).await;
    end(&mut ours).await;
    theirs[0] = cluster.start_theirs(0).await;
    serves_a_new_peer(&cluster, pods).await;
    // A flanneld with udp has one route for all peers.
    if !network.contains("udp") {
        moves_and_removes_it(&cluster).await;
    }
}

/// Two hosts with flanneld and a pod each, which reach each other, and a third without.
async fn flannelds(network: &str) -> (Cluster, Vec<Pod>, Vec<flannel_testbed::Flanneld>) {
    let cluster = Cluster::new(3, network).await;
    let (mut theirs, mut pods) = (Vec::new(), Vec::new());
    for n in 0..2 {
        theirs.push(cluster.start_theirs(n).await);
        pods.push(cluster.host(n).add_pod(cluster.subnet(n)).await.unwrap());
    }
    eventually(async || probe::reachability(&pods).await.complete()).await;
    (cluster, pods, theirs)
}

async fn end(process: &mut Process) {
    process.terminate().unwrap();
    process.wait().await.unwrap();
}

/// What flanneld makes on host 0: devices, routes, neighbours, forwarding entries and rules, without what counts.
async fn state(cluster: &Cluster) -> String {
    let tables = "ip -d link show type vxlan; ip -br addr show type vxlan; ip nexthop; ip route show table all; ip -6 route show table all; \
        ip neigh show nud permanent; ip -6 neigh show nud permanent; bridge fdb show | grep flannel; \
        iptables-save; ip6tables-save; nft -s list ruleset | grep flannel; true";
    let all = cluster.shell(0, tables).await;
    let mut lines: Vec<_> = all.lines().filter(|line| !line.starts_with('#')).collect();
    // The counters of a chain end its line.
    for line in &mut lines {
        if line.starts_with(':') {
            *line = line.split(" [").next().expect("a first part");
        }
    }
    // Whether a device gets a link-local address when it comes up: ours do not need one, and flanneld does not look at that.
    lines.join("\n").replace("addrgenmode eui64", "addrgenmode none")
}

#[track_caller]
fn assert_same(expected: &str, found: &str, when: &str) {
    let lacks: Vec<_> = expected.lines().filter(|line| !found.contains(line)).collect();
    let more: Vec<_> = found.lines().filter(|line| !expected.contains(line)).collect();
    assert!(lacks.is_empty() && more.is_empty(), "{when}: lacks {lacks:#?}, has {more:#?}");
}

async fn serves_a_new_peer(cluster: &Cluster, mut pods: Vec<Pod>) {
    let _joins = cluster.start_theirs(2).await;
    pods.push(cluster.host(2).add_pod(cluster.subnet(2)).await.unwrap());
    eventually(async || probe::reachability(&pods).await.complete()).await;
}

/// The last peer gets another address, and goes.
async fn moves_and_removes_it(cluster: &Cluster) {
    let blocks = cluster.subnet(2);
    let (v4, v6) = (blocks.ipv4().unwrap(), blocks.ipv6().unwrap());
    let keys = "/coreos.com/network/subnets/";
    let key = format!("{keys}{}-{}&{}-{}", v4.network(), v4.prefix(), v6.network(), v6.prefix());
    let lease = cluster.etcd.ctl(&["get", "--print-value-only", &key]).await.unwrap();
    let moved = lease.replace("192.0.2.3\"", "192.0.2.77\"").replace("db8::3\"", "db8::77\"");
    assert_ne!(moved, lease);
    cluster.etcd.ctl(&["put", &key, &moved]).await.unwrap();
    let shown = async || cluster.shell(0, "ip route; ip -6 route; bridge fdb").await;
    eventually(async || {
        let shown = shown().await;
        ["192.0.2.77 ", "2001:db8::77 "].iter().all(|address| shown.contains(address))
    })
    .await;
    cluster.etcd.ctl(&["del", &key]).await.unwrap();
    let left = [v4.to_string(), v6.to_string(), "192.0.2.77 ".into(), "2001:db8::77 ".into()];
    eventually(async || {
        let shown = shown().await;
        !left.iter().any(|part| shown.contains(part))
    })
    .await;
}
