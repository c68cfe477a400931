//! The demo's hosts, pods and node processes.

use std::{env, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use flannel_core::NetworkConfig;
use flannel_daemon::read_subnet_file;
use flannel_netlink::{
    list_nexthops, list_routes,
    state::{IpFamily, Route, Via},
};
use flannel_store::FileStore;
use flannel_testbed::{Blocks, Host, Pod, Process, Testbed, probe::Reachability};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::output::say;

pub(super) struct Cluster {
    testbed: Testbed,
    folder: TempDir,
    nodes: Vec<Member>,
}

/// A node that is up, with a pod behind it.
struct Member {
    process: Process,
    subnet: Blocks,
    pod: Pod,
}

impl Cluster {
    /// Hosts without nodes, and a store with a network.
    pub(super) async fn build(hosts: u8, backend: &str) -> Result<Self> {
        let config = serde_json::json!({ "Network": NETWORK, "Backend": { "Type": backend } });
        let config: NetworkConfig = config.to_string().parse()?;
        let folder = tempfile::Builder::new().prefix("flannel-demo-").tempdir();
        let folder = folder.context("cannot make a folder for the store")?;
        FileStore::init(folder.path().join("store"), &config).await?;
        let start = Instant::now();
        let testbed = Testbed::new(hosts.into()).await?;
        say!("  switch and hosts are up after {} ms", start.elapsed().as_millis());
        Ok(Self { testbed, folder, nodes: Vec::new() })
    }

    /// Starts all nodes at once, and a pod behind each as soon as it has a subnet.
    pub(super) async fn start_nodes(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut processes = Vec::new();
        for host in self.testbed.hosts() {
            processes.push(host.spawn(self.command(host)?)?);
        }
        for (host, mut process) in self.testbed.hosts().iter().zip(processes) {
            process.line(START, |line| line.contains(" ready subnet=")).await?;
            let env = read_subnet_file(&self.subnet_file(host));
            let subnet = Blocks::new(env.subnet, env.ipv6_subnet);
            let subnet = subnet.with_context(|| format!("{} has no subnet", host.name()))?;
            let pod = host.add_pod(subnet).await?;
            say!(
                "  {} at {} has {subnet} after {} ms; pod at {}",
                host.name(),
                host.ip(),
                start.elapsed().as_millis(),
                pod.ip()
            );
            self.nodes.push(Member { process, subnet, pod });
        }
        // A node is ready with the peers that it knew then; those that came later take their moment.
        let settled = async {
            while !self.reachability().await.complete() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START, settled).await.ok();
        Ok(())
    }

    /// The command line that an operator would use, with a name and a file for each host of this machine.
    fn command(&self, host: &Host) -> Result<Command> {
        let program = env::current_exe().context("cannot find this program's file")?;
        #[expect(clippy::disallowed_methods, reason = "the demo runs this very program as node")]
        let mut command = Command::new(program);
        for (name, _) in
            env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("FLANNELD_"))
        {
            command.env_remove(name);
        }
        command.arg("--store").arg(format!("file:{}", self.store().display()));
        command.args(["--iface", "eth0", "--node-id", host.name()]);
        command.arg("--subnet-file").arg(self.subnet_file(host));
        Ok(command)
    }

    pub(super) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    pub(super) fn pod(&self, n: usize) -> &Pod {
        &self.nodes[n].pod
    }

    pub(super) fn subnet(&self, n: usize) -> Blocks {
        self.nodes[n].subnet
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn store(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    fn subnet_file(&self, host: &Host) -> std::path::PathBuf {
        self.folder.path().join(format!("{}.env", host.name()))
    }

    pub(super) async fn reachability(&self) -> Reachability {
        self.testbed.reachability().await
    }

    /// The leases as they are in the store: key, and the first line of the file.
    pub(super) fn leases(&self) -> Result<Vec<(String, String)>> {
        let folder = self.store().join("subnets");
        let mut leases = Vec::new();
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                let text = fs::read_to_string(&path)?;
                leases.push((name, text.lines().next().unwrap_or_default().to_owned()));
            }
        }
        leases.sort();
        Ok(leases)
    }

    /// The routes of a host to the subnets of others, with their gateways.
    pub(super) async fn routes(&self, n: usize) -> Result<Vec<(Route, String)>> {
        let mut connection = self.host(n).connect()?;
        let nexthops = list_nexthops(&mut connection).await?;
        let routes = list_routes(&mut connection, Route::MAIN, IpFamily::V4).await?;
        let peers: Vec<_> = self.nodes.iter().filter_map(|node| node.subnet.ipv4()).collect();
        let leads_to_peer = |route: &Route| {
            peers.iter().any(|peer| route.destination == (*peer).into()) && route.protocol != KERNEL
        };
        let gateway = |route: &Route| match route.via {
            Via::Gateway(gateway) => gateway.to_string(),
            Via::Nexthop(id) => {
                let nexthop = nexthops.iter().find(|nexthop| nexthop.id == id);
                nexthop.map_or_else(String::new, |nexthop| nexthop.gateway.to_string())
            }
            _ => String::new(),
        };
        let routes = routes.into_iter().filter(leads_to_peer);
        Ok(routes.map(|route| (route, gateway(&route))).collect())
    }

    pub(super) async fn has_route(&self, n: usize, peer: usize) -> Result<bool> {
        let peer = self.nodes[peer].subnet;
        let routes = self.routes(n).await?;
        Ok(routes.iter().any(|(route, _)| peer.iter().any(|block| block == route.destination)))
    }

    /// What each node process keeps in memory.
    pub(super) fn memory(&self) -> Result<String> {
        let mut sizes = Vec::new();
        for node in &self.nodes {
            let bytes = node.process.resident_memory()?;
            sizes.push(format!("{:.1} MB", bytes as f64 / 1e6));
        }
        Ok(sizes.join(", "))
    }

    /// The names of the hosts, and the processes of their nodes.
    pub(super) fn processes(&self) -> impl Iterator<Item = (&str, u32)> {
        let hosts = self.testbed.hosts().iter().map(Host::name);
        hosts.zip(self.nodes.iter().filter_map(|node| node.process.pid()))
    }

    pub(super) fn print_logs(&self) {
        for (host, node) in self.testbed.hosts().iter().zip(&self.nodes) {
            say!("\nlog of {}:", host.name());
            for line in node.process.output() {
                say!("  {line}");
            }
        }
    }
}

const NETWORK: &str = "10.244.0.0/16";

/// What a node may take to be ready. It takes some ten milliseconds; a loaded machine takes longer.
const START: Duration = Duration::from_secs(10);

/// The protocol number of routes that the kernel makes for its own addresses, `RTPROT_KERNEL`.
const KERNEL: u8 = 2;
