//! A store that forgets: what nodes that run through it do to the data path between each other.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use flannel_core::{
    Activity, FaultKind, Node, NodeHandle, NodeOptions, Status, Subnet, testing::FakeBackend,
};
use flannel_store::{LeaseOptions, MemoryCluster, NewRecord};
use tokio::time::{Instant, sleep};

const CONFIG: &str = r#"{"Network":"10.3.0.0/16"}"#;

/// Nodes that run, each with its host.
struct Nodes {
    cluster: MemoryCluster,
    nodes: Vec<(NodeHandle, FakeBackend, Subnet)>,
}

impl Nodes {
    /// Starts them, and waits until each serves all others.
    async fn start(count: u8, remembered: usize) -> Self {
        let cluster = MemoryCluster::with_history(&CONFIG.parse().unwrap(), remembered);
        let mut world = Self { cluster, nodes: Vec::new() };
        for n in 1..=count {
            world.add(n).await;
        }
        world.converged().await;
        world
    }

    async fn add(&mut self, n: u8) {
        let options = LeaseOptions { ttl: Duration::from_secs(600), ..LeaseOptions::default() };
        let store = self.cluster.store_with(format!("n{n}").parse().unwrap(), options);
        let host = FakeBackend::new(Ipv4Addr::new(192, 0, 2, n));
        let options = NodeOptions { seed: n.into(), ..NodeOptions::default() };
        let node = Node::from_parts(Arc::new(store), Arc::new(host.clone()), options);
        let mut handle = node.handle();
        tokio::spawn(async move { panic!("a node ended: {}", node.run().await.unwrap_err()) });
        let status = handle.wait_for(Status::is_ready).await.unwrap();
        self.nodes.push((handle, host, status.lease.unwrap().subnet));
    }

    async fn converged(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.is_whole() || !self.nodes.iter().all(|(node, ..)| node.status().is_ready()) {
            assert!(Instant::now() < deadline, "not converged");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether every node has routes to all others at their own addresses.
    fn is_whole(&self) -> bool {
        self.nodes.iter().all(|(_, host, own)| {
            let routes = host.routes();
            self.nodes
                .iter()
                .filter(|(.., peer)| peer != own)
                .all(|(_, there, peer)| routes.get(peer) == Some(&there.address().into()))
        })
    }

    /// Looks every 50 ms for a time; no route may be missing.
    async fn stay_whole(&self, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            assert!(self.is_whole(), "a route was taken away");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn wipe(&self) {
        for record in self.cluster.records() {
            self.cluster.remove(&record.key);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_wiped_takes_no_route_away() {
    for remembered in [1, 1024] {
        let world = Nodes::start(12, remembered).await;
        world.cluster.set_config(None);
        world.wipe();
        world.stay_whole(60).await;
        let fault = world.nodes[0].0.status().fault(Activity::Config).cloned().unwrap();
        assert_eq!(fault.kind, FaultKind::ConfigMissing);
        world.cluster.set_config(Some(CONFIG));
        world.stay_whole(1).await;
        for (node, _, subnet) in &world.nodes {
            let status = node.status();
            assert!(status.is_ready() && status.faults.is_empty(), "soon after: {status:?}");
            assert_eq!(status.lease.unwrap().subnet, *subnet);
        }
        world.stay_whole(200).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_restored_from_an_old_snapshot_takes_no_route_away() {
    for (remembered, before) in [(1, 4), (1024, 4), (1, 11), (1024, 11)] {
        let mut world = Nodes::start(before, remembered).await;
        let old = world.cluster.records();
        for n in before + 1..=12 {
            world.add(n).await;
        }
        world.converged().await;
        // Some are cut off and come back one after the other.
        for n in 1..=12_u8 {
            if n % 3 == 0 {
                world.cluster.cut(&format!("n{n}").parse().unwrap(), flannel_store::Cut::Fail);
            }
        }
        world.wipe();
        for record in old {
            let (value, owner) = (record.value.unwrap(), record.owner);
            let ttl = Some(Duration::from_secs(600));
            world.cluster.put(&record.key, &NewRecord { value, owner, ttl });
        }
        world.cluster.compact();
        for n in 1..=12_u8 {
            if n % 3 == 0 {
                world.stay_whole(10).await;
                world.cluster.heal(&format!("n{n}").parse().unwrap());
            }
        }
        world.stay_whole(200).await;
        assert!(world.nodes.iter().all(|(node, ..)| node.status().is_ready()));
    }
}
