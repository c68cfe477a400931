//! Hosts with a pod each, some of which run the engine.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use flannel_backend_udp::{DropReason, Udp};
use flannel_core::{
    Backend, BackendError, Lease, LeaseEvent, Network, NetworkConfig, Peers, SyncReport,
};
use flannel_testbed::{Blocks, Host, Pod, Testbed};
use ipnetwork::Ipv4Network;
use tokio::time::{Instant, sleep, timeout};

use crate::support;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Nobody,
    Ours,
}

pub(crate) struct Lab {
    pub(crate) testbed: Testbed,
    pub(crate) pods: Vec<Pod>,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) config: NetworkConfig,
}

pub(crate) struct Node {
    pub(crate) backend: Arc<Udp>,
    pub(crate) network: Box<dyn Network>,
}

impl Lab {
    pub(crate) async fn new(kinds: &[Kind]) -> Self {
        Self::with(kinds, |_, udp| udp).await
    }

    /// Hosts of these kinds that all know each other; `change` is done to each of our backends.
    pub(crate) async fn with(kinds: &[Kind], change: impl Fn(usize, Udp) -> Udp) -> Self {
        Self::configured(kinds, support::IPV4, change).await
    }

    /// The same in the network of `config`.
    pub(crate) async fn configured(
        kinds: &[Kind],
        config: &str,
        change: impl Fn(usize, Udp) -> Udp,
    ) -> Self {
        let testbed = Testbed::new(kinds.len() as u32).await.unwrap();
        let config = config.replace("userspace", crate::ENGINE);
        let config: NetworkConfig = config.parse().unwrap();
        let (mut pods, mut leases, mut backends) = (Vec::new(), Vec::new(), Vec::new());
        for (n, host) in testbed.hosts().iter().enumerate() {
            pods.push(host.add_pod(Blocks::from(block(n))).await.unwrap());
            let backend = Arc::new(change(n, support::udp(host, &config)));
            let subnet = format!("10.244.{}.0-24", n + 1).parse().unwrap();
            let mut attrs = backend.advertise(None).await.unwrap();
            if kinds[n] != Kind::Ours {
                attrs.backend_data = None;
            }
            leases.push(Lease::new(subnet, attrs));
            backends.push(backend);
        }
        let mut lab = Self { testbed, pods, nodes: Vec::new(), leases, config };
        for (n, (kind, backend)) in kinds.iter().zip(backends).enumerate() {
            let node = if *kind == Kind::Ours {
                let network = backend.start(&lab.leases[n]).await.unwrap();
                let mut node = Node { backend, network };
                node.network.sync(&lab.peers(n)).await.unwrap();
                Some(node)
            } else {
                None
            };
            lab.nodes.push(node);
        }
        lab
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    pub(crate) fn address(&self, n: usize) -> Ipv4Addr {
        self.host(n).ipv4().unwrap()
    }

    pub(crate) fn pod_ip(&self, n: usize) -> Ipv4Addr {
        self.pods[n].ipv4().unwrap()
    }

    pub(crate) fn peers(&self, n: usize) -> Peers {
        self.peers_of(n, self.leases.clone())
    }

    pub(crate) fn peers_of(&self, n: usize, leases: Vec<Lease>) -> Peers {
        let mut peers = Peers::new(self.config.clone(), self.leases[n].clone());
        peers.fold(LeaseEvent::reset(leases));
        peers
    }

    pub(crate) fn node(&mut self, n: usize) -> &mut Node {
        self.nodes[n].as_mut().expect("one of ours")
    }

    pub(crate) async fn sync(&mut self, n: usize) -> Result<SyncReport, BackendError> {
        let peers = self.peers(n);
        self.node(n).network.sync(&peers).await
    }

    pub(crate) fn dropped(&self, n: usize, reason: DropReason) -> u64 {
        self.nodes[n].as_ref().expect("one of ours").backend.stats().dropped(reason)
    }

    /// Waits until so many packets were dropped for this reason, and no more.
    pub(crate) async fn expect_dropped(&self, n: usize, reason: DropReason, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.dropped(n, reason) != count {
            assert!(Instant::now() < deadline, "{} {reason:?}", self.dropped(n, reason));
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn reaches(&self, from: usize, to: usize) -> bool {
        let how = flannel_testbed::probe::Ping::default().timeout(Duration::from_millis(500));
        self.pods[from].ping_with(self.pod_ip(to).into(), how).await.is_ok()
    }

    /// Does what a node does when its network drifts, until pods reach each other again; false if that takes too long.
    pub(crate) async fn repair(&mut self, n: usize, to: usize) -> bool {
        let peers = self.peers(n);
        let repair = async {
            loop {
                let drifted = self.node(n).network.drifted();
                if let Ok(drifted) = timeout(Duration::from_millis(20), drifted).await {
                    drifted.unwrap();
                    // What fails is tried again.
                    let _ = self.node(n).network.sync(&peers).await;
                }
                if self.reaches(n, to).await {
                    return;
                }
            }
        };
        timeout(PATIENCE, repair).await.is_ok()
    }
}

pub(crate) fn block(n: usize) -> Ipv4Network {
    Ipv4Network::new([10, 244, n as u8 + 1, 0].into(), 24).unwrap()
}

/// What a repair may take, from the contract.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
