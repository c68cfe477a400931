//! Nodes that look at the ways to their peers while a link on the way changes what it takes.

use std::time::Duration;

use flannel_testbed::{Process, eventually, probe::Ping, soon};
use serde_json::Value;

use super::support::{Cluster, program};

pub(crate) async fn probing(cluster: &Cluster, n: usize) -> Process {
    let mut command = cluster.command(program(), n);
    command.arg("--probe-peers");
    cluster.run(n, command).await
}

/// What the first node has found on the way to the other one.
pub(crate) async fn path(cluster: &Cluster) -> Value {
    path_of(cluster, 0, "ipv4").await
}

/// What host `n` has found on the way to the other one.
pub(crate) async fn path_of(cluster: &Cluster, n: usize, family: &str) -> Value {
    cluster.status(n).await["peers"][0]["path"][family].clone()
}

pub(crate) async fn is_respected_in_five_seconds(network: &'static str) {
    let cluster = Cluster::new(2, network).await;
    let _nodes = [probing(&cluster, 0).await, probing(&cluster, 1).await];
    let near = cluster.host(0).add_pod(cluster.subnet(0)).await.unwrap();
    let far = cluster.host(1).add_pod(cluster.subnet(1)).await.unwrap();
    let whole = Ping::default().size(1450).timeout(Duration::from_millis(200));
    eventually(async || near.ping_with(far.ip(), whole).await.is_ok()).await;
    eventually(async || path(&cluster).await["state"] == "enough").await;
    for mtu in [1400, 1280] {
        cluster.host(1).set_path_mtu(mtu).await.unwrap();
        let passes = eventually(async || near.ping_with(far.ip(), whole).await.is_ok());
        soon(passes).await;
    }
    cluster.host(1).set_path_mtu(1500).await.unwrap();
    let good = eventually(async || path(&cluster).await["state"] == "enough");
    soon(good).await;
}
