//! Steps for nodes that are to send nothing in the clear, where default routes would carry packets between pods, as in a network that
//! knows the pods' blocks.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{fs, process::Command, time::Duration};

use flannel_testbed::{Blocks, Process, eventually, probe};
use tokio::time::sleep;

use super::{
    capture::Capture,
    support::{Cluster, program},
};

const BLOCKS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
const DEVICES: [&str; 2] = ["flannel-wg", "flannel-wg-v6"];

async fn start(cluster: &Cluster, n: usize) -> Process {
    let mut command = cluster.command(program(), n);
    command.args(["-require-encryption", "-ip-masq"]);
    cluster.run(n, command).await
}

async fn kill(node: &mut Process) {
    node.kill().unwrap();
    node.wait().await.unwrap();
}

/// Nothing is in the clear while nodes start, lose their devices, change their keys, are killed and are taken down.
pub(crate) async fn holds_in_every_phase(network: &'static str) {
    let cluster = Cluster::new(2, network).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let everywhere: Blocks = "0.0.0.0/0,::/0".parse().unwrap();
        cluster.host(from).add_route(everywhere, cluster.host(to)).await.unwrap();
    }
    let blocks = BLOCKS.map(|block| block.parse().unwrap());
    let capture = Capture::start(&cluster.testbed, blocks.to_vec());
    let mut nodes = [start(&cluster, 0).await, start(&cluster, 1).await];
    let mut pods = Vec::new();
    for n in [0, 1] {
        pods.push(cluster.host(n).add_pod(cluster.subnet(n)).await.unwrap());
    }
    let mut streams = Vec::new();
    for ip in pods[1].endpoint().ips() {
        streams.push(probe::stream(&pods[0], ip, 50).unwrap());
    }
    let flows = async || {
        let before = capture.encrypted();
        eventually(async || capture.encrypted() > before + 100).await;
    };
    flows().await;
    for device in DEVICES {
        cluster.shell(0, &format!("ip link delete {device}")).await;
        flows().await;
    }
    // The peer has another key.
    kill(&mut nodes[1]).await;
    fs::remove_file(cluster.subnet_file(1).with_file_name("wgkey")).unwrap();
    nodes[1] = start(&cluster, 1).await;
    flows().await;
    // Nobody is there to make the devices again.
    kill(&mut nodes[0]).await;
    for device in DEVICES {
        cluster.shell(0, &format!("ip link delete {device} || true")).await;
    }
    sleep(Duration::from_millis(500)).await;
    nodes[0] = start(&cluster, 0).await;
    flows().await;
    nodes[0].terminate().unwrap();
    nodes[0].wait().await.unwrap();
    let mut teardown = Command::new(program());
    teardown.args(["teardown", "--require-encryption", "--subnet-file"]);
    teardown.arg(cluster.subnet_file(0));
    cluster.host(0).run(teardown).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(capture.plain(), 0);
    let devices = cluster.shell(0, "ip -o link").await;
    assert!(!devices.contains("flannel-wg"), "{devices}");

    // What the default routes would have carried.
    for block in BLOCKS {
        cluster.shell(0, &format!("ip route delete unreachable {block}")).await;
    }
    eventually(async || capture.sees_all()).await;
    drop(streams);
}
