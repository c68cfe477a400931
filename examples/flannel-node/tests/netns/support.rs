//! Hosts that run this program over one folder.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flannel_core::Subnet;
use flannel_testbed::{Blocks, Host, Pod, Process, Testbed, eventually, probe};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
/// The same with rules in nftables.
pub(crate) const HOST_GW_NFT: &str =
    r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#;
pub(crate) const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Hosts without nodes, and a folder for their store and files.
pub(crate) struct Cluster {
    pub(crate) testbed: Testbed,
    pub(crate) folder: TempDir,
    /// What a node stores if there is no network, and has to be there otherwise.
    pub(crate) network: &'static str,
}

impl Cluster {
    pub(crate) async fn new(hosts: u32, network: &'static str) -> Self {
        let testbed = Testbed::builder(hosts).build().await.unwrap();
        Self { testbed, folder: tempfile::tempdir().unwrap(), network }
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    pub(crate) fn store(&self) -> String {
        format!("file:{}", self.folder.path().join("store").display())
    }

    pub(crate) fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("run{n}/subnet.env"))
    }

    pub(crate) fn state_folder(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("lib{n}"))
    }

    /// The command that runs host `n`'s node, as `program`.
    pub(crate) fn command(&self, program: &Path, n: usize) -> Command {
        let mut command = Command::new(program);
        command.arg(format!("-store={}", self.store()));
        command.args(["-iface=eth0", "-network", self.network]);
        command.arg("-subnet-file").arg(self.subnet_file(n));
        command.arg("-state-dir").arg(self.state_folder(n));
        command
    }

    /// Starts host `n`'s node and waits until it is ready.
    pub(crate) async fn start(&self, n: usize) -> Process {
        self.run(n, self.command(program(), n)).await
    }

    pub(crate) async fn run(&self, n: usize, command: Command) -> Process {
        let mut process = self.host(n).spawn(command).unwrap();
        let ready = |line: &str| line.contains(" ready subnet=");
        process.line(Duration::from_secs(20), ready).await.unwrap();
        process
    }

    /// Runs a line of shell on host `n` and returns what it prints.
    pub(crate) async fn shell(&self, n: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let mut process = self.host(n).spawn(command).unwrap();
        let status = process.wait().await.unwrap();
        let said = process.output().join("\n");
        assert!(status.success(), "{line}: {said}");
        said
    }

    /// Starts the nodes of all hosts and a pod behind each, and waits until all reach each other.
    pub(crate) async fn start_all(&self) -> (Vec<Process>, Vec<Pod>) {
        self.start_all_with(&[]).await
    }

    /// The same with further arguments for each node.
    pub(crate) async fn start_all_with(&self, arguments: &[&str]) -> (Vec<Process>, Vec<Pod>) {
        let (mut nodes, mut pods) = (Vec::new(), Vec::new());
        for n in 0..self.testbed.hosts().len() {
            let mut command = self.command(program(), n);
            command.args(arguments);
            nodes.push(self.run(n, command).await);
            pods.push(self.host(n).add_pod(self.subnet(n)).await.unwrap());
        }
        eventually(async || probe::reachability(&pods).await.complete()).await;
        (nodes, pods)
    }

    /// The lease of host `n`'s node as it is in the store.
    pub(crate) fn lease(&self, n: usize) -> String {
        let blocks = self.subnet(n);
        let key = Subnet::new(blocks.ipv4(), blocks.ipv6()).unwrap().to_string();
        fs::read_to_string(self.folder.path().join("store/subnets").join(key)).unwrap()
    }

    /// What host `n`'s node says about itself.
    pub(crate) async fn status(&self, n: usize) -> Value {
        let mut command = Command::new(program());
        command.args(["status", "--json", "--subnet-file"]).arg(self.subnet_file(n));
        let mut process = self.host(n).spawn(command).unwrap();
        let (ended, said) = (process.wait().await.unwrap(), process.output().join("\n"));
        assert!(ended.success(), "{said}");
        serde_json::from_str(&said).unwrap()
    }

    /// How many leases there are.
    pub(crate) fn leases(&self) -> usize {
        let entries = fs::read_dir(self.folder.path().join("store/subnets")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).count()
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
}

/// What a node answers on its local socket: the code, and the body.
pub(crate) fn asked(socket: &Path, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The program under test.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_flannel-node"))
}
