//! Three nodes over the members of an etcd.
#![expect(clippy::disallowed_methods, reason = "these tests are about programs")]

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use flannel_testbed::{Blocks, Host, Pod, Process, Testbed, eventually, probe};
use tempfile::TempDir;

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// The shortest that a node takes, in seconds.
pub(crate) const TTL: u64 = 5;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Nodes on hosts 0, 1 and 2, and members of etcd on hosts from 3 on.
pub(crate) struct World {
    pub(crate) testbed: Testbed,
    pub(crate) folder: TempDir,
    pub(crate) members: Vec<Option<Process>>,
    pub(crate) nodes: Vec<Option<Process>>,
    pub(crate) ttl: u64,
}

pub(crate) const NODES: usize = 3;

impl World {
    pub(crate) async fn with_members(members: usize) -> Self {
        let testbed = Testbed::new((NODES + members) as u32).await.unwrap();
        let mut world = Self {
            testbed,
            folder: tempfile::tempdir().unwrap(),
            members: (0..members).map(|_| None).collect(),
            nodes: (0..NODES).map(|_| None).collect(),
            ttl: TTL,
        };
        for member in 0..members {
            world.spawn_member(member);
        }
        for member in 0..members {
            world.member_serves(member).await;
        }
        world.etcdctl(&["put", "/coreos.com/network/config", NETWORK]).await;
        world
    }

    /// Two nodes that know each other, and a pod behind each.
    pub(crate) async fn with_two_nodes(&mut self) -> [Pod; 2] {
        self.start(0).await;
        self.start(1).await;
        let world = &*self;
        eventually(async || world.knows(0, 1).await && world.knows(1, 0).await).await;
        let mut pods = Vec::new();
        for n in 0..2 {
            pods.push(self.host(n).add_pod(self.subnet(n)).await.unwrap());
        }
        pods.try_into().unwrap_or_else(|_| unreachable!("two were made"))
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    pub(crate) fn client_url(&self, member: usize) -> String {
        format!("http://{}:2379", self.host(NODES + member).ip())
    }

    pub(crate) fn client_urls(&self) -> String {
        let urls: Vec<_> = (0..self.members.len()).map(|member| self.client_url(member)).collect();
        urls.join(",")
    }

    pub(crate) fn spawn_member(&mut self, member: usize) {
        let peer_url = |n: usize| format!("http://{}:2380", self.host(NODES + n).ip());
        let all: Vec<_> =
            (0..self.members.len()).map(|n| format!("m{n}={}", peer_url(n))).collect();
        let (clients, peers) = (self.client_url(member), peer_url(member));
        let mut command = Command::new("etcd");
        command.arg("--name").arg(format!("m{member}"));
        command.arg("--data-dir").arg(self.folder.path().join(format!("etcd{member}")));
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &all.join(",")]);
        // Short, so that also what a lost leader means is soon over.
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        let etcd = self.host(NODES + member).spawn(command);
        self.members[member] = Some(etcd.expect("etcd: apt-get install etcd-server"));
    }

    pub(crate) async fn member_serves(&mut self, member: usize) {
        let etcd = self.members[member].as_mut().expect("it was started");
        let serves = |line: &str| line.contains("serving insecure client requests");
        etcd.line(LIMIT, serves).await.unwrap();
    }

    pub(crate) async fn kill_member(&mut self, member: usize) {
        let mut etcd = self.members[member].take().expect("it was started");
        etcd.kill().unwrap();
        etcd.wait().await.unwrap();
    }

    pub(crate) async fn start_member(&mut self, member: usize) {
        self.spawn_member(member);
        self.member_serves(member).await;
    }

    /// What etcd's own client says, asked on host 2.
    pub(crate) async fn etcdctl(&self, args: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.client_urls()]).args(args);
        let mut process =
            self.host(2).spawn(command).expect("etcdctl: apt-get install etcd-client");
        let status = process.wait().await.unwrap();
        let output = process.output().join("\n");
        assert!(status.success(), "etcdctl {args:?}: {output}");
        output
    }

    pub(crate) fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("{n}.env"))
    }

    pub(crate) fn command(&self, n: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
        command.args(["--etcd-endpoints", &self.client_urls(), "--iface=eth0"]);
        command.arg("--lease-ttl").arg(self.ttl.to_string());
        command.arg("--subnet-file").arg(self.subnet_file(n));
        command.arg("--state-dir").arg(self.folder.path().join(format!("state{n}")));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn spawn(&mut self, n: usize) {
        self.nodes[n] = Some(self.host(n).spawn(self.command(n)).unwrap());
    }

    pub(crate) async fn start(&mut self, n: usize) {
        self.spawn(n);
        self.says(n, " ready subnet=").await;
    }

    pub(crate) async fn says(&mut self, n: usize, text: &str) -> String {
        let node = self.nodes[n].as_mut().expect("it was started");
        node.line(LIMIT, |line| line.contains(text)).await.unwrap()
    }

    pub(crate) async fn kill(&mut self, n: usize) {
        let mut node = self.nodes[n].take().expect("it was started");
        node.kill().unwrap();
        node.wait().await.unwrap();
    }

    pub(crate) fn subnet(&self, n: usize) -> Blocks {
        let env = fs::read_to_string(self.subnet_file(n)).unwrap();
        let block = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        block.unwrap().parse().unwrap()
    }

    pub(crate) fn key(&self, n: usize) -> String {
        let block = self.subnet(n).ipv4().unwrap();
        format!("/coreos.com/network/subnets/{}-{}", block.network(), block.prefix())
    }

    pub(crate) async fn knows(&self, n: usize, peer: usize) -> bool {
        let block = self.subnet(peer).ipv4().unwrap();
        let route = format!("{}/{}", block.network(), block.prefix());
        self.host(n).snapshot().await.unwrap().to_string().contains(&route)
    }

    /// Whether node 0 has no route for the lease at a key any more.
    pub(crate) async fn has_forgotten(&self, key: &str) -> bool {
        let block = key.rsplit('/').next().unwrap().replace('-', "/");
        !self.host(0).snapshot().await.unwrap().to_string().contains(&block)
    }

    /// The value and the lease of a key; `None` if there is no such key.
    pub(crate) async fn stored(&self, key: &str) -> Option<(String, String)> {
        let output = self.etcdctl(&["get", key, "--write-out", "fields"]).await;
        let field = |name: &str| {
            let mut lines = output.lines();
            lines.find_map(|line| {
                Some(line.strip_prefix(name)?.trim_start_matches([' ', ':']).into())
            })
        };
        Some((field("\"Value\"")?, field("\"Lease\"")?))
    }
}

/// Packets in both directions, twenty a second each.
pub(crate) struct Traffic(pub(crate) [probe::Stream; 2]);

impl Traffic {
    pub(crate) fn between(pods: &[Pod; 2]) -> Self {
        let stream = |from: &Pod, to: IpAddr| probe::stream(from, to, 20).unwrap();
        Self([stream(&pods[0], pods[1].ip()), stream(&pods[1], pods[0].ip())])
    }

    /// Ends it, and says how much of it was lost.
    pub(crate) async fn lost(self, fault: &str) -> u64 {
        let mut lost = 0;
        for stream in self.0 {
            stream.flowing().await;
            let report = stream.stop().await;
            println!("{fault}: {report}");
            lost += report.lost as u64;
        }
        lost
    }
}

/// Runs ip(8).
pub(crate) async fn ip(host: &Host, args: &[&str]) {
    let mut command = Command::new("ip");
    command.args(args);
    host.run(command).await.unwrap();
}
