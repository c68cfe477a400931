//! Hosts with an API server.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use flannel_testbed::{Flanneld, Host, Pod, Process, Testbed, kube::FakeApiServer, probe, subnet};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Hosts, each with a Node called `node0` and so on, and an API server on host 0.
pub(crate) struct Cluster {
    pub(crate) server: FakeApiServer,
    pub(crate) testbed: Testbed,
    pub(crate) folder: TempDir,
}

impl Cluster {
    pub(crate) async fn new(hosts: u32, network: &str) -> Self {
        let testbed = Testbed::builder(hosts).default_route().build().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("net-conf.json"), network).unwrap();
        let (namespace, ip) = (testbed.host(0).namespace().clone(), testbed.host(0).ip());
        let address = SocketAddr::new(ip, 8080);
        let bind =
            move || namespace.run(|| TcpListener::bind(address)).map_err(std::io::Error::other)?;
        let server = FakeApiServer::start(bind).unwrap();
        let cluster = Self { server, testbed, folder };
        for n in 0..hosts {
            let blocks = [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")];
            let has = [!network.contains(r#""EnableIPv4":false"#), network.contains("IPv6Network")];
            let blocks = blocks.iter().zip(has).filter(|(_, has)| *has);
            let blocks: Vec<_> = blocks.map(|(block, _)| block.as_str()).collect();
            cluster.server.add_node(&format!("node{n}"), &blocks, true);
        }
        cluster
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    pub(crate) fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("run{n}/subnet.env"))
    }

    pub(crate) fn ours(&self, n: usize) -> Command {
        self.with_options(Command::new(env!("CARGO_BIN_EXE_flannel-node")), n)
    }

    pub(crate) fn theirs(&self, n: usize) -> Command {
        self.with_options(Command::new(Flanneld::path().unwrap()), n)
    }

    /// The options are the same for both.
    pub(crate) fn with_options(&self, mut command: Command, n: usize) -> Command {
        command.args(["-kube-subnet-mgr", "-iface=eth0"]);
        command.arg(format!("-kube-api-url={}", self.server.url()));
        command.arg("-net-config-path").arg(self.folder.path().join("net-conf.json"));
        command.arg("-subnet-file").arg(self.subnet_file(n));
        command.env("NODE_NAME", format!("node{n}"));
        command
    }

    pub(crate) async fn start_ours(&self, n: usize) -> Process {
        self.start(n, self.ours(n)).await
    }

    pub(crate) async fn start(&self, n: usize, command: Command) -> Process {
        let mut process = self.host(n).spawn(command).unwrap();
        let ready = |line: &str| line.contains(" ready subnet=");
        process.line(Duration::from_secs(60), ready).await.unwrap();
        process
    }

    pub(crate) async fn start_theirs(&self, n: usize) -> Flanneld {
        Flanneld::start(self.host(n), self.theirs(n), &self.subnet_file(n)).await.unwrap()
    }

    /// A pod behind each host, all of which reach each other.
    pub(crate) async fn connected_pods(&self) -> Vec<Pod> {
        let mut pods = Vec::new();
        for n in 0..self.testbed.hosts().len() {
            pods.push(self.host(n).add_pod(subnet(&self.subnet_file(n))).await.unwrap());
        }
        // One after the other, for the reason that the tests with etcd give.
        for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to))) {
            for ip in to.endpoint().ips() {
                let _ = from.ping(ip).await;
            }
        }
        eventually("pods reach each other", async || probe::reachability(&pods).await.complete())
            .await;
        pods
    }

    pub(crate) async fn shell(&self, n: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        self.host(n).run(command).await.unwrap()
    }

    /// Waits until hosts have routes to these blocks 10.244.N.0/24, and none to those.
    pub(crate) async fn converged(&self, hosts: &[usize], present: &[u8], gone: &[u8]) {
        for host in hosts {
            // A peer that is missing from a new list stays for two minutes.
            within(Duration::from_secs(200), "hosts have the routes that they need", async || {
                let routes = self.shell(*host, "ip route").await;
                let has = |n: &u8| routes.contains(&format!("10.244.{n}.0/24"));
                present.iter().all(has) && !gone.iter().any(has)
            })
            .await;
        }
    }

    /// A Node with the block 10.244.N.0/24 whose vxlan peer nobody runs.
    pub(crate) fn add_stranger(&self, name: &str, n: u8) {
        self.server.add_node(name, &[&format!("10.244.{n}.0/24")], true);
        let annotations = json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}"#),
            "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{n}"),
        });
        self.server.patch("nodes", name, &json!({"metadata": {"annotations": annotations}}));
    }

    /// What flannel's annotations of a node say.
    pub(crate) fn annotations(&self, n: usize) -> BTreeMap<String, String> {
        let node = self.server.get("nodes", &format!("node{n}")).unwrap();
        let all = node["metadata"]["annotations"].as_object().unwrap().clone();
        all.into_iter()
            .filter(|(name, _)| name.starts_with("flannel."))
            .map(|(name, value)| (name, value.as_str().unwrap().to_owned()))
            .collect()
    }

    /// The condition NetworkUnavailable of a node.
    pub(crate) fn condition(&self, n: usize) -> Option<Value> {
        let node = self.server.get("nodes", &format!("node{n}"))?;
        let all = node["status"]["conditions"].as_array()?.clone();
        all.into_iter().find(|it| it["type"] == "NetworkUnavailable")
    }

    /// The writes since the last call.
    pub(crate) fn writes(&self) -> Vec<String> {
        let asked = self.server.take_requests().into_iter();
        asked.filter(|it| it.method != "GET").map(|it| it.body).collect()
    }
}

pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    within(Duration::from_secs(90), what, condition).await;
}

pub(crate) async fn within(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(limit, wait).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

pub(crate) fn ipv4(backend: &str) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#)
}
