//! Hosts that run this program or flanneld over one etcd.
#![expect(clippy::disallowed_methods, reason = "these tests are about the programs themselves")]

use std::{path::PathBuf, process::Command, time::Duration};

use flannel_testbed::{
    Blocks, Etcd, Flanneld, Host, Pod, Process, Testbed, eventually, probe, subnet,
};
use tempfile::TempDir;

/// Hosts without nodes, and an etcd on host 0.
pub(crate) struct Cluster {
    pub(crate) testbed: Testbed,
    pub(crate) folder: TempDir,
    pub(crate) etcd: Etcd,
}

impl Cluster {
    /// `network` may name the folder as `DIR`.
    pub(crate) async fn new(hosts: u32, network: &str) -> Self {
        let testbed = Testbed::builder(hosts).default_route().build().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(testbed.host(0), &folder.path().join("etcd")).await.unwrap();
        let network = network.replace("DIR", &folder.path().display().to_string());
        etcd.ctl(&["put", "/coreos.com/network/config", &network]).await.unwrap();
        Self { testbed, folder, etcd }
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    /// Both programs of a host have the same, one after the other.
    pub(crate) fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("run{n}/subnet.env"))
    }

    pub(crate) fn ours(&self, n: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
        command.arg(format!("-etcd-endpoints={}", self.etcd.url())).arg("-iface=eth0");
        command.arg("-subnet-file").arg(self.subnet_file(n));
        command.arg("-state-dir").arg(self.folder.path().join(format!("lib{n}")));
        command
    }

    pub(crate) fn theirs(&self, n: usize) -> Command {
        Flanneld::command(self.etcd.url(), &self.subnet_file(n)).unwrap()
    }

    pub(crate) async fn start_ours(&self, n: usize) -> Process {
        let mut process = self.host(n).spawn(self.ours(n)).unwrap();
        let ready = |line: &str| line.contains(" ready subnet=");
        process.line(Duration::from_secs(60), ready).await.unwrap();
        process
    }

    pub(crate) async fn start_theirs(&self, n: usize) -> Flanneld {
        Flanneld::start(self.host(n), self.theirs(n), &self.subnet_file(n)).await.unwrap()
    }

    pub(crate) fn subnet(&self, n: usize) -> Blocks {
        subnet(&self.subnet_file(n))
    }

    /// A pod behind each host, all of which reach each other.
    pub(crate) async fn connected_pods(&self) -> Vec<Pod> {
        let mut pods = Vec::new();
        for n in 0..self.testbed.hosts().len() {
            pods.push(self.host(n).add_pod(self.subnet(n)).await.unwrap());
        }
        // One after the other: where both ends of a WireGuard tunnel begin at the same moment, on one clock, their handshakes can
        // collide for minutes.
        for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to))) {
            for ip in to.endpoint().ips() {
                let _ = from.ping(ip).await;
            }
        }
        eventually(async || probe::reachability(&pods).await.complete()).await;
        pods
    }

    pub(crate) async fn shell(&self, n: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        self.host(n).run(command).await.unwrap()
    }
}

pub(crate) fn dual(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{{"Type":"{backend}"}}}}"#
    )
}

pub(crate) fn ipv4(backend: &str) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#)
}
