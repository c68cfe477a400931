//! A store that forgets: what nodes that run through it do to the data path between each other.

use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    thread::{self, ThreadId},
    time::Duration,
};

use flannel_core::{
    Activity, FaultKind, Node, NodeHandle, NodeOptions, Status, Subnet, testing::FakeBackend,
};
use flannel_store::{
    LeaseOptions, NewRecord,
    testing::{Cut, FaultyCluster},
};
use tokio::time::{Instant, sleep};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

const CONFIG: &str = r#"{"Network":"10.3.0.0/16"}"#;

/// Nodes that run, each with its host.
struct Nodes {
    cluster: FaultyCluster,
    nodes: Vec<(NodeHandle, FakeBackend, Subnet)>,
}

impl Nodes {
    /// Starts them, and waits until each serves all others.
    async fn start(count: u8, remembered: usize) -> Self {
        let cluster = FaultyCluster::with_history(&CONFIG.parse().unwrap(), remembered);
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
                world.cluster.cut(&format!("n{n}").parse().unwrap(), Cut::Fail);
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

/// The lines of one thread from `Level::INFO` up. It has to be everybody's subscriber: one that is a thread's own hears nothing
/// from where another thread has been first.
#[derive(Clone)]
struct Lines(ThreadId, Arc<Mutex<Vec<(Level, String)>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if thread::current().id() != self.0 {
            return;
        }
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.1.lock().unwrap().push((*event.metadata().level(), message.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_a_line_when_it_begins_one_a_minute_and_one_when_it_ends() {
    let lines = Lines(thread::current().id(), Arc::default());
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let world = Nodes::start(2, 1024).await;
    let name = "n1".parse().unwrap();
    lines.1.lock().unwrap().clear();
    world.cluster.cut(&name, Cut::Fail);
    sleep(Duration::from_secs(600)).await;
    world.cluster.heal(&name);
    sleep(Duration::from_secs(60)).await;
    let (mut failed, mut over) = (BTreeMap::<String, usize>::new(), Vec::new());
    for (level, line) in lines.1.lock().unwrap().iter() {
        let line = line.strip_prefix("still ").unwrap_or(line);
        if let Some(line) = line.strip_prefix("cannot ").filter(|_| *level == Level::WARN) {
            let activity = line.split([',', ':']).next().unwrap();
            *failed.entry(activity.into()).or_default() += 1;
        }
        let line = line.strip_prefix("can ").and_then(|line| line.strip_suffix(" again"));
        over.extend(line.map(str::to_owned));
    }
    over.sort_unstable();
    assert!(failed.keys().eq(&over), "each outage ends: {failed:?}, {over:?}");
    assert!(failed.len() >= 3, "the lease, its peers, the config: {failed:?}");
    for (activity, lines) in failed {
        assert!((2..=11).contains(&lines), "{activity}: {lines} lines in ten minutes");
    }
    assert_eq!(world.nodes[0].0.status().faults, []);
}
