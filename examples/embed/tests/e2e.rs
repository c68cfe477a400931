//! The examples as they are, on two hosts.
#![expect(clippy::disallowed_methods, reason = "these tests are about the programs themselves")]

use std::{
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::{self, Command},
    time::Duration,
};

use flannel_testbed::{Etcd, Pod, Testbed, eventually, probe, subnet};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn two_machines_make_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let testbed = Testbed::builder(2).default_route().build().await.unwrap();
    let etcd = Etcd::start(testbed.host(0), &folder.path().join("etcd")).await.unwrap();
    let (mut programs, mut pods) = (Vec::new(), Vec::new());
    for host in testbed.hosts() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embed"));
        command.arg(etcd.url()).arg("eth0").arg(folder.path().join(host.name()));
        programs.push(host.spawn(command).unwrap());
    }
    for (host, program) in testbed.hosts().iter().zip(&mut programs) {
        let sees_the_other = |line: &str| line.ends_with("with 1 peers");
        program.line(Duration::from_secs(60), sees_the_other).await.unwrap();
        let file = folder.path().join(host.name()).join("subnet.env");
        pods.push(host.add_pod(subnet(&file)).await.unwrap());
    }
    connected(&pods).await;
    let asked = async |path: &str| {
        let mut command = Command::new("curl");
        command.arg("-sf").arg(format!("http://127.0.0.1:8080/{path}"));
        testbed.host(0).run(command).await.unwrap()
    };
    assert_eq!(asked("readyz").await.trim(), "flannel-node is ready");
    assert!(asked("metrics").await.contains("flannel_peers 1"));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn one_process_serves_two_networks_on_two_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let testbed = Testbed::new(2).await.unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_embed-many"));
    command.arg(folder.path());
    for host in testbed.hosts() {
        let namespace = host.namespace().as_fd().as_raw_fd();
        command.arg(format!("/proc/{}/fd/{namespace}", process::id()));
    }
    let _program = testbed.host(0).spawn(command).unwrap();
    let mut networks = Vec::new();
    for network in ["blue", "green"] {
        let mut pods = Vec::new();
        for (number, host) in testbed.hosts().iter().enumerate() {
            let file = folder.path().join(format!("{network}-{number}/subnet.env"));
            eventually(async || file.exists()).await;
            pods.push(host.add_pod(subnet(&file)).await.unwrap());
        }
        connected(&pods).await;
        networks.push(pods);
    }
    assert!(networks[0][0].subnet() != networks[1][0].subnet());
}

#[test]
fn the_examples_are_short() {
    for path in ["src/main.rs", "src/bin/embed-many.rs"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 80, "{} has {lines} lines", path.display());
    }
}

/// Waits until all pods reach each other.
async fn connected(pods: &[Pod]) {
    eventually(async || probe::reachability(pods).await.complete()).await;
}
