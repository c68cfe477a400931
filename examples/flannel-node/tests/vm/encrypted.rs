//! No packet between pods is on the underlay as it is.

use flannel_testbed::{eventually, probe, soon};

use crate::{
    capture::Capture,
    support::{Cluster, dual},
};

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn packets_between_pods_are_encrypted_and_kept_through_start_restart_and_kill() {
    let cluster = Cluster::new(2, &dual("wireguard")).await;
    let pods = ["10.244.0.0/16", "fd00:10:244::/48"].map(|block| block.parse().unwrap());
    let capture = Capture::start(&cluster.testbed, pods.to_vec());
    let mut nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 50).unwrap();
    soon(streams.flowing()).await;
    for (n, kill) in [(0, true), (1, false)] {
        let node = &mut nodes[n];
        if kill { node.kill() } else { node.terminate() }.unwrap();
        node.wait().await.unwrap();
        let before = capture.encrypted();
        eventually(async || capture.encrypted() > before + 200).await;
        *node = cluster.start_ours(n).await;
        let before = capture.encrypted();
        eventually(async || capture.encrypted() > before + 200).await;
    }
    let report = streams.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    assert_eq!(capture.plain(), 0);

    // The capture would have seen them.
    for (from, to) in [(0, 1), (1, 0)] {
        let to = (cluster.subnet(to), cluster.host(to));
        cluster.host(from).add_route(to.0, to.1).await.unwrap();
    }
    for ip in pods[1].endpoint().ips() {
        pods[0].ping(ip).await.unwrap();
    }
    eventually(async || capture.sees_all()).await;
}
