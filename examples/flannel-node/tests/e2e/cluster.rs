//! Hosts that run the program over one folder, or over an etcd on host 0.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use flannel_testbed::{Blocks, Host, Pod, Process, Testbed};
use tempfile::TempDir;

pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#;

pub(crate) const DUAL_VXLAN: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
pub(crate) const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#;
pub(crate) const IPV6_VXLAN: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
pub(crate) const IPV4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// Room for two nodes.
pub(crate) const TWO_SUBNETS: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.7.0","SubnetMax":"10.244.8.0","Backend":{"Type":"host-gw"}}"#;

/// A cluster of processes over one folder, or over an etcd on host 0.
pub(crate) struct Cluster {
    pub(crate) testbed: Testbed,
    pub(crate) folder: TempDir,
    network: &'static str,
    pub(crate) etcd: bool,
}

impl Cluster {
    pub(crate) async fn new(hosts: u32, network: &'static str) -> Self {
        Self::on(Testbed::builder(hosts).build().await.unwrap(), network)
    }

    pub(crate) fn on(testbed: Testbed, network: &'static str) -> Self {
        Self { testbed, folder: tempfile::tempdir().unwrap(), network, etcd: false }
    }

    fn etcd_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.host(0).ip(), 2379))
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    pub(crate) fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("{n}.env"))
    }

    pub(crate) fn command(&self, n: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
        if self.etcd {
            command.arg(format!("-etcd-endpoints={}", self.etcd_url()));
        } else {
            command.arg(format!("-store=file:{}", self.folder.path().join("store").display()));
        }
        command.args(["-iface=eth0", "-network", self.network]);
        command.arg("-subnet-file").arg(self.subnet_file(n));
        command.arg("-state-dir").arg(self.folder.path().join(format!("{n}.state")));
        command
    }

    /// Starts etcd on host 0, on the data that it had before if it ran already.
    pub(crate) async fn start_etcd(&self) -> Process {
        let (clients, data) = (self.etcd_url(), self.folder.path().join("etcd"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        let mut etcd = self.host(0).spawn(command).expect("etcd: apt-get install etcd-server");
        let serves = |line: &str| line.contains("serving insecure client requests");
        etcd.line(Duration::from_secs(20), serves).await.unwrap();
        etcd
    }

    pub(crate) async fn start(&self, n: usize) -> Process {
        let mut process = self.host(n).spawn(self.command(n)).unwrap();
        process
            .line(Duration::from_secs(20), |line| line.contains(" ready subnet="))
            .await
            .unwrap();
        process
    }

    /// The blocks that a host's `subnet.env` names.
    pub(crate) fn subnet(&self, n: usize) -> Blocks {
        let env = fs::read_to_string(self.subnet_file(n)).unwrap();
        let blocks = env.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            key.ends_with("_SUBNET").then_some(value)
        });
        blocks.collect::<Vec<_>>().join(",").parse().unwrap()
    }

    /// The only route's next hop is not of interest here; that there is one is.
    pub(crate) async fn knows(&self, n: usize, peer: usize) -> bool {
        let snapshot = self.host(n).snapshot().await.unwrap().to_string();
        self.subnet(peer).iter().all(|block| snapshot.contains(&block.to_string()))
    }

    pub(crate) async fn pods(&self, hosts: usize) -> Vec<Pod> {
        let mut pods = Vec::new();
        for n in 0..hosts {
            pods.push(self.host(n).add_pod(self.subnet(n)).await.unwrap());
        }
        pods
    }
}
