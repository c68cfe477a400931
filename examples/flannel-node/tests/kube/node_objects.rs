//! The node's own Node object.

use std::time::Duration;

use flannel_testbed::{probe, subnet};
use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{Cluster, eventually, ipv4};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_node_object_that_is_made_anew_has_its_peers_again() {
    let cluster = Cluster::new(2, &ipv4("host-gw")).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    for _ in 0..2 {
        cluster.server.delete("nodes", "node1");
        sleep(Duration::from_secs(2)).await;
        cluster.server.add_node("node1", &["10.244.1.0/24"], true);
        eventually("it says again who it is", async || cluster.annotations(1).len() == 4).await;
        eventually("pods reach each other", async || probe::reachability(&pods).await.complete())
            .await;
    }
    // What somebody removes of it comes back.
    let none = json!({"flannel.alpha.coreos.com/public-ip": null});
    cluster.server.patch("nodes", "node1", &json!({"metadata": {"annotations": none}}));
    eventually("it says again where it is", async || cluster.annotations(1).len() == 4).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_node_without_a_block_waits_and_says_what_for() {
    let cluster = Cluster::new(1, &ipv4("host-gw")).await;
    cluster.server.delete("nodes", "node0");
    cluster.server.add_node("node0", &[], true);
    let mut command = cluster.ours(0);
    command.arg("-healthz-port=8081");
    let mut process = cluster.host(0).spawn(command).unwrap();
    let reason = "node0 has no spec.podCIDR yet";
    process.line(Duration::from_secs(60), |line| line.contains(reason)).await.unwrap();
    let asked = "curl -sS -w ' %{http_code}' http://127.0.0.1:8081/readyz";
    let answer = cluster.shell(0, asked).await;
    assert!(answer.contains(reason) && answer.ends_with(" 503"), "{answer}");
    let spec = json!({"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]});
    cluster.server.patch("nodes", "node0", &json!({ "spec": spec }));
    let ready = |line: &str| line.contains(" ready subnet=");
    process.line(Duration::from_secs(60), ready).await.unwrap();
    assert_eq!(subnet(&cluster.subnet_file(0)).to_string(), "10.244.9.0/24");
}
