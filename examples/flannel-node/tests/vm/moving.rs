//! The network moves to wireguard and back, or gets new keys, while pods talk.

use std::time::Duration;

use flannel_testbed::{eventually, probe, soon};
use tokio::time::sleep;

use crate::support::{Cluster, dual};

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn nodes_move_from_vxlan_to_wireguard_and_back_without_a_lost_packet() {
    lose_nothing("vxlan", [("wireguard", "flannel.1"), ("vxlan", "flannel-wg")]).await;
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn nodes_get_new_keys_without_a_lost_packet() {
    lose_nothing("wireguard", [("wireguard-2", "flannel-wg"), ("wireguard", "flannel-wg2")]).await;
}

/// Moves a network from backend to backend. After each move, a device of the one before is gone.
async fn lose_nothing(first: &str, moves: [(&str, &str); 2]) {
    let cluster = Cluster::new(2, &dual(first)).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 50).unwrap();
    soon(streams.flowing()).await;
    for (kind, other) in moves {
        cluster.etcd.ctl(&["put", "/coreos.com/network/config", &dual(kind)]).await.unwrap();
        eventually(async || {
            // Emulation is slow: to look takes longer than to wait.
            sleep(Duration::from_secs(1)).await;
            let mut devices = String::new();
            for n in 0..2 {
                devices += &cluster.shell(n, "ip -o link show").await;
            }
            if devices.contains(&format!(" {other}: ")) {
                return false;
            }
            let leases = ["get", "--prefix", "--print-value-only", "/coreos.com/network/subnets"];
            let leases = cluster.etcd.ctl(&leases).await.unwrap();
            let moved = leases.matches(&format!(r#""BackendType":"{kind}""#)).count() == 2;
            moved && !leases.contains("SecondBackend")
        })
        .await;
        soon(streams.flowing()).await;
    }
    let report = streams.stop().await;
    println!("{report}");
    assert_eq!(report.lost, 0, "{report}");
}
