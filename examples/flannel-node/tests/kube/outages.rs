//! The API server goes away and comes back.

use std::{collections::BTreeSet, fs, time::Duration};

use flannel_testbed::{probe, soon, subnet};
use tokio::time::sleep;

use crate::cluster::{Cluster, eventually, ipv4};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn an_api_server_that_comes_and_goes_costs_no_packet() {
    let mut cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 100).unwrap();
    for round in 0..8_u8 {
        // Something changes while nobody listens.
        cluster.server.stop();
        let (name, block) = (format!("extra{round}"), format!("10.244.{}.0/24", 100 + round));
        cluster.add_stranger(&name, 100 + round);
        match round % 4 {
            1 => cluster.server.compact(),
            2 => cluster.server.behave(|it| it.expired_watches = 3),
            3 => cluster.server.behave(|it| it.watch_list = round % 8 == 7),
            _ => {}
        }
        cluster.server.resume().unwrap();
        for n in [0, 1] {
            eventually("the new node is a peer", async || {
                cluster.shell(n, "ip route").await.contains(&block)
            })
            .await;
        }
    }
    cluster.server.delete("nodes", "extra7");
    for n in [0, 1] {
        eventually("a deleted node is no peer", async || {
            !cluster.shell(n, "ip route").await.contains("10.244.107.0/24")
        })
        .await;
    }
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn an_api_server_that_is_killed_a_hundred_times_while_nodes_come_and_go_costs_no_packet() {
    let mut cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 100).unwrap();
    let mut blocks = BTreeSet::new();
    for round in 0..100_u8 {
        cluster.server.stop();
        let n = 100 + round % 9;
        let name = format!("extra{n}");
        // Every fourth time the Node goes, and else it comes, perhaps in the place of one of that name.
        cluster.server.delete("nodes", &name);
        blocks.remove(&n);
        if round % 4 != 3 {
            cluster.add_stranger(&name, n);
            blocks.insert(n);
        }
        if round % 5 == 0 {
            cluster.server.compact();
        }
        cluster.server.behave(|it| it.watch_list = round % 6 != 1);
        cluster.server.resume().unwrap();
        sleep(Duration::from_millis([0, 5, 50, 300][usize::from(round % 4)])).await;
    }
    let (live, gone) = (100..109_u8).partition::<Vec<_>, _>(|n| blocks.contains(n));
    assert!(!live.is_empty() && !gone.is_empty(), "{blocks:?}");
    cluster.converged(&[0, 1], &live, &gone).await;
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_restart_without_the_api_server_repairs_the_data_path() {
    let mut cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let mut first = cluster.start_ours(0).await;
    let _second = cluster.start_ours(1).await;
    let pods = cluster.connected_pods().await;
    let state = cluster.subnet_file(0).with_file_name("kubernetes.json");
    eventually("the last state is kept", async || {
        fs::read_to_string(&state).is_ok_and(|it| it.contains("10.244.1.0-24"))
    })
    .await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 100).unwrap();
    cluster.server.stop();
    first.kill().unwrap();
    first.wait().await.unwrap();
    // Meanwhile somebody breaks it.
    cluster.shell(0, "ip route del 10.244.1.0/24").await;
    let _again = cluster.start_ours(0).await;
    soon(stream.flowing()).await;
    cluster.server.resume().unwrap();
    cluster.add_stranger("node7", 7);
    eventually("it follows the API server again", async || {
        cluster.shell(0, "ip route").await.contains("10.244.7.0/24")
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_node_object_that_was_made_anew_meanwhile_puts_the_last_state_right() {
    let mut cluster = Cluster::new(1, &ipv4("host-gw")).await;
    let mut first = cluster.start_ours(0).await;
    let state = cluster.subnet_file(0).with_file_name("kubernetes.json");
    eventually("the last state is kept", async || {
        fs::read_to_string(&state).is_ok_and(|it| it.contains("10.244.0.0-24"))
    })
    .await;
    cluster.server.stop();
    first.kill().unwrap();
    first.wait().await.unwrap();
    let _again = cluster.start_ours(0).await;
    assert_eq!(subnet(&cluster.subnet_file(0)).to_string(), "10.244.0.0/24");
    // Another Node of that name, with another block.
    cluster.server.delete("nodes", "node0");
    cluster.server.add_node("node0", &["10.244.9.0/24"], true);
    cluster.server.resume().unwrap();
    eventually("it has the block of the new Node", async || {
        subnet(&cluster.subnet_file(0)).to_string() == "10.244.9.0/24"
    })
    .await;
    eventually("it says who it is", async || cluster.annotations(0).len() == 4).await;
}
