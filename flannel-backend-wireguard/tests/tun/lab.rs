//! Hosts with a pod each, some of which run the engine.

use std::{net::IpAddr, sync::Arc, time::Duration};

use flannel_backend::{Paths, UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_wireguard::Wireguard;
use flannel_core::{Backend, Lease, LeaseEvent, Network, NetworkConfig, Peers, Subnet, SyncReport};
use flannel_testbed::{Blocks, Host, Pod, Testbed, probe::Ping};
use tempfile::TempDir;

pub(crate) const IPV4: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","Engine":"userspace"}}"#;
pub(crate) const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"wireguard","Engine":"userspace"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"wireguard","Engine":"userspace"}}"#;
pub(crate) const ONE: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48",
    "Backend":{"Type":"wireguard","Engine":"userspace","Mode":"ipv6","PSK":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}}"#;

pub(crate) fn backend(host: &Host, config: &NetworkConfig, keys: &TempDir) -> Wireguard {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    let finder = UplinkFinder::new(host.namespace(), config, &options).unwrap();
    Wireguard::new(config, finder, keys.path().join(host.ip().to_string())).unwrap()
}

type Make = Box<dyn Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + Send + Sync>;

/// Hosts with a key each, where one route leads to all peers.
pub(crate) async fn world(config: &str) -> KernelWorld<Make> {
    let keys = tempfile::tempdir().unwrap();
    let make = move |host: &Host, config: &NetworkConfig| -> Arc<dyn Backend> {
        Arc::new(backend(host, config, &keys))
    };
    KernelWorld::new(config, Box::new(make) as Make).await
}

pub(crate) struct Lab {
    pub(crate) testbed: Testbed,
    pub(crate) pods: Vec<Pod>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) leases: Vec<Lease>,
    configs: Vec<NetworkConfig>,
    keys: TempDir,
}

pub(crate) struct Node {
    pub(crate) backend: Arc<Wireguard>,
    pub(crate) network: Box<dyn Network>,
}

impl Lab {
    /// Hosts that all know each other, each with a configuration.
    pub(crate) async fn new(configs: &[&str]) -> Self {
        let testbed = Testbed::new(configs.len() as u32).await.unwrap();
        let configs: Vec<NetworkConfig> = configs.iter().map(|it| it.parse().unwrap()).collect();
        let keys = tempfile::tempdir().unwrap();
        let (mut pods, mut leases, mut backends) = (Vec::new(), Vec::new(), Vec::new());
        for (n, host) in testbed.hosts().iter().enumerate() {
            let subnet = subnet(&configs[n], n);
            let blocks = Blocks::new(subnet.ipv4(), subnet.ipv6()).unwrap();
            pods.push(host.add_pod_with_mtu(blocks, POD_MTU).await.unwrap());
            let backend = Arc::new(backend(host, &configs[n], &keys));
            leases.push(Lease::new(subnet, backend.advertise(None).await.unwrap()));
            backends.push(backend);
        }
        let mut lab = Self { testbed, pods, nodes: Vec::new(), leases, configs, keys };
        for (n, backend) in backends.into_iter().enumerate() {
            let network = backend.start(&lab.leases[n]).await.unwrap();
            lab.nodes.push(Node { backend, network });
            lab.sync(n).await;
        }
        lab
    }

    /// Starts a node anew beside the one that runs, as an upgrade does.
    pub(crate) async fn restart(&mut self, n: usize) {
        self.restart_with(n, Paths::default()).await;
    }

    /// The same with somebody who finds out about the ways to peers.
    pub(crate) async fn restart_with(&mut self, n: usize, paths: Paths) {
        let backend = backend(self.testbed.host(n), &self.configs[n], &self.keys);
        let backend = Arc::new(backend.with_paths(paths));
        backend.advertise(Some(&self.leases[n])).await.unwrap();
        let network = backend.start(&self.leases[n]).await.unwrap();
        self.nodes[n] = Node { backend, network };
        self.sync(n).await;
    }

    pub(crate) fn peers_of(&self, n: usize, leases: Vec<Lease>) -> Peers {
        let mut peers = Peers::new(self.configs[n].clone(), self.leases[n].clone());
        peers.fold(LeaseEvent::reset(leases));
        peers
    }

    pub(crate) async fn sync(&mut self, n: usize) -> SyncReport {
        let peers = self.peers_of(n, self.leases.clone());
        self.nodes[n].network.sync(&peers).await.unwrap()
    }

    pub(crate) fn count(&self, n: usize, name: &str) -> u64 {
        let counters = self.nodes[n].backend.report().counters;
        *counters.get(name).unwrap_or_else(|| panic!("no counter {name}"))
    }

    pub(crate) async fn reaches(&self, from: usize, to: usize) -> bool {
        let ips: Vec<IpAddr> = self.pods[to].endpoint().ips().collect();
        let how = Ping::default().timeout(Duration::from_millis(1000));
        for ip in ips {
            if self.pods[from].ping_with(ip, how).await.is_err() {
                return false;
            }
        }
        true
    }
}

fn subnet(config: &NetworkConfig, n: usize) -> Subnet {
    let v4 = config.ipv4().map(|_| format!("10.244.{}.0/24", n + 1).parse().unwrap());
    let v6 = config.ipv6().map(|_| format!("fd00:10:244:{}::/64", n + 1).parse().unwrap());
    Subnet::new(v4, v6).unwrap()
}

/// What subnet.env says where the uplink's is 1500, bytes.
const POD_MTU: u32 = 1420;
