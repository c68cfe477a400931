//! Nodes that run, their pods, and packets between all of them while something goes wrong.
#![expect(clippy::disallowed_methods, reason = "these tests are about programs")]

use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use flannel_core::Subnet;
use flannel_testbed::{Blocks, Host, Pod, Process, Testbed, probe, subnet};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

pub(crate) fn dual(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{{"Type":"{backend}"}}}}"#
    )
}

/// Hosts, a node and a pod on each of the first of them.
pub(crate) struct Trial {
    pub(crate) testbed: Testbed,
    pub(crate) folder: TempDir,
    /// What each node is started with, beside its own files.
    pub(crate) options: Vec<OsString>,
    /// What runs the program, with its arguments; nothing unless set.
    pub(crate) runner: Vec<OsString>,
    pub(crate) nodes: Vec<Process>,
    pub(crate) pods: Vec<Pod>,
}

impl Trial {
    pub(crate) async fn new(hosts: u32) -> Self {
        Self {
            testbed: Testbed::new(hosts).await.unwrap(),
            folder: tempfile::tempdir().unwrap(),
            options: Vec::new(),
            runner: Vec::new(),
            nodes: Vec::new(),
            pods: Vec::new(),
        }
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn subnet_file(&self, n: usize) -> PathBuf {
        self.path(&format!("run{n}/subnet.env"))
    }

    pub(crate) fn subnet(&self, n: usize) -> Blocks {
        subnet(&self.subnet_file(n))
    }

    pub(crate) fn subnets(&self) -> Vec<Blocks> {
        (0..self.nodes.len()).map(|n| self.subnet(n)).collect()
    }

    /// The last part of the key of host `n`'s lease.
    pub(crate) fn key(&self, n: usize) -> String {
        let blocks = self.subnet(n);
        Subnet::new(blocks.ipv4(), blocks.ipv6()).expect("a subnet").to_string()
    }

    pub(crate) fn command(&self, n: usize) -> Command {
        let program = [OsString::from(env!("CARGO_BIN_EXE_flannel-node"))];
        let mut words = self.runner.iter().chain(&program);
        let mut command = Command::new(words.next().expect("there is the program"));
        command.args(words).arg("--iface=eth0").args(&self.options);
        command.arg("--subnet-file").arg(self.subnet_file(n));
        command.arg("--state-dir").arg(self.path(&format!("lib{n}")));
        command
    }

    pub(crate) async fn start(&self, n: usize) -> Process {
        let mut node = self.host(n).spawn(self.command(n)).unwrap();
        node.line(LIMIT, |line| line.contains(" ready subnet=")).await.unwrap();
        node
    }

    /// Starts the node of the next host and a pod behind it, and waits until all pods reach each other.
    pub(crate) async fn add(&mut self) {
        let n = self.nodes.len();
        self.nodes.push(self.start(n).await);
        self.pods.push(self.host(n).add_pod(self.subnet(n)).await.unwrap());
        self.converged().await;
    }

    pub(crate) async fn converged(&self) {
        eventually("all pods reach each other", async || {
            probe::reachability(&self.pods).await.complete()
        })
        .await;
    }

    pub(crate) async fn all_ready(&self) {
        eventually("all nodes are ready", async || {
            (0..self.nodes.len()).all(|n| self.asked(n, "/readyz") == "flannel-node is ready\n")
        })
        .await;
    }

    /// What the node of host `n` answers on its local socket.
    pub(crate) fn asked(&self, n: usize, path: &str) -> String {
        let mut answer = String::new();
        let asked = UnixStream::connect(self.subnet_file(n).with_extension("sock")).and_then(
            |mut stream| {
                write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
                stream.read_to_string(&mut answer)
            },
        );
        match (asked, answer.split_once("\r\n\r\n")) {
            (Ok(_), Some((_, body))) => body.to_owned(),
            other => format!("no answer: {other:?}"),
        }
    }

    /// Every pod asks the next one by every family, a hundred times a second.
    pub(crate) fn traffic(&self) -> Traffic {
        let mut streams = Vec::new();
        for (from, to) in self.pods.iter().zip(self.pods.iter().cycle().skip(1)) {
            for ip in to.endpoint().ips() {
                let name = format!("{} to {ip}", from.name());
                streams.push((name, probe::stream(from, ip, 100).unwrap()));
            }
        }
        Traffic(streams)
    }
}

/// Packets under way.
pub(crate) struct Traffic(Vec<(String, probe::Stream)>);

impl Traffic {
    /// Ends it. Nothing may have been lost.
    pub(crate) async fn lost_nothing(self, during: &str) {
        let mut lost = Vec::new();
        let mut sent = 0;
        for (name, stream) in self.0 {
            let flowing = timeout(LIMIT, stream.flowing()).await;
            let report = stream.stop().await;
            sent += report.sent;
            if flowing.is_err() || report.lost > 0 {
                lost.push(format!("{name}: {report}"));
            }
        }
        println!("{during}: {sent} sent, {} of the streams lost some", lost.len());
        assert!(lost.is_empty(), "{during}: {}", lost.join("\n"));
    }
}

pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(LIMIT, wait).await.is_ok(), "not within {LIMIT:?}: {what}");
}

/// Generous: other tests run beside.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
