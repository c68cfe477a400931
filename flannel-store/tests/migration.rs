//! Clusters in paused time that move from one backend to another: real nodes over a memory registry, and hosts in memory. At every
//! moment each node has a way to each other one, by a backend by which that one accepts packets.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use flannel_core::{
    Backend, BackendError, BackendSource, LeaseAttrs, Migrating, MigrationOptions, MigrationRecord,
    NetworkConfig, Node, NodeHandle, NodeId, NodeOptions, Place, SplitMix64, Subnet,
    testing::FakeBackend,
};
use flannel_store::testing::{Cut, FaultyCluster};
use tokio::{task::JoinHandle, time::sleep};

const KINDS: [&str; 3] = ["one", "two", "three"];
const NODES: usize = 3;
/// How often everybody is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// One machine: its hosts, one for each backend, and what its node remembers outlive the node.
#[derive(Clone, Debug)]
struct Machine {
    id: NodeId,
    hosts: BTreeMap<&'static str, FakeBackend>,
    record: Arc<Mutex<Option<String>>>,
}

impl BackendSource for Machine {
    fn build(&self, config: &NetworkConfig, _: Place) -> Result<Arc<dyn Backend>, BackendError> {
        let kind = config.backend().kind();
        let host = self.hosts.get(kind).ok_or_else(|| BackendError::Unsupported {
            backend: kind.into(),
            reason: "it is not here".into(),
        })?;
        Ok(Arc::new(host.clone()))
    }

    fn remember(&self, record: &MigrationRecord) -> Result<(), BackendError> {
        *self.record.lock().unwrap() = Some(serde_json::to_string(record).unwrap());
        Ok(())
    }

    fn recall(&self) -> Option<MigrationRecord> {
        let text = self.record.lock().unwrap().clone()?;
        Some(serde_json::from_str(&text).unwrap())
    }
}

struct World {
    cluster: FaultyCluster,
    machines: Vec<Machine>,
    running: Vec<Option<(JoinHandle<()>, NodeHandle)>>,
    subnets: Vec<Subnet>,
    seed: u64,
    /// What happened, for people.
    history: Vec<String>,
}

fn config(kind: &str) -> String {
    format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"{kind}"}}}}"#)
}

impl World {
    /// Nodes that reach each other by the first backend.
    async fn new(seed: u64) -> Self {
        let first: NetworkConfig = config(KINDS[0]).parse().unwrap();
        let machine = |n: usize| {
            let address = [192, 0, 2, 1 + n as u8].into();
            let hosts = KINDS.into_iter().map(|kind| (kind, FakeBackend::of_kind(kind, address)));
            let id = format!("n{n}").parse().unwrap();
            Machine { id, hosts: hosts.collect(), record: Arc::default() }
        };
        let mut world = Self {
            cluster: FaultyCluster::new(&first),
            machines: (0..NODES).map(machine).collect(),
            running: (0..NODES).map(|_| None).collect(),
            subnets: Vec::new(),
            seed,
            history: Vec::new(),
        };
        for n in 0..NODES {
            world.start(n).await;
        }
        for n in 0..NODES {
            let handle = &mut world.running[n].as_mut().unwrap().1;
            let all = |status: &flannel_core::Status| {
                status.is_ready() && status.peers == Some(NODES - 1) && status.last_sync.is_some()
            };
            let status = handle.wait_for(all).await.unwrap();
            world.subnets.push(status.lease.unwrap().subnet);
        }
        sleep(Duration::from_secs(1)).await;
        world.check();
        world
    }

    async fn start(&mut self, n: usize) {
        let machine = self.machines[n].clone();
        let id = machine.id.clone();
        let store = self.cluster.store(id);
        // As a daemon does: the configuration is read before the backend is made.
        let seed = self.seed + n as u64;
        let options = NodeOptions { seed, ..NodeOptions::default() };
        let registry = self.cluster.registry(machine.id.clone());
        let config = loop {
            if let Ok(config) = flannel_store::network_config(&registry).await {
                break config;
            }
            sleep(LOOK).await;
        };
        let backend =
            Migrating::new(Arc::new(machine), &config, MigrationOptions::default()).unwrap();
        let node = Node::from_parts(Arc::new(store), Arc::new(backend), options);
        let handle = node.handle();
        let task = tokio::spawn(async move {
            let error = node.run().await.expect_err("a node only ends with an error");
            panic!("a node ended: {error}");
        });
        self.running[n] = Some((task, handle));
    }

    fn configure(&mut self, kind: &str) {
        self.history.push(format!("configure {kind}"));
        self.cluster.set_config(Some(&config(kind)));
    }

    fn kill(&mut self, n: usize) {
        if let Some((task, _)) = self.running[n].take() {
            task.abort();
        }
    }

    /// Every node has a way to every other one, and all its ways are accepted.
    fn check(&self) {
        for (n, machine) in self.machines.iter().enumerate() {
            for (m, peer) in self.machines.iter().enumerate().filter(|(m, _)| *m != n) {
                let subnet = &self.subnets[m];
                let ways: Vec<_> = KINDS
                    .into_iter()
                    .filter(|kind| machine.hosts[kind].routes().contains_key(subnet))
                    .collect();
                let history = self.history.join(", ");
                assert!(!ways.is_empty(), "seed {}: {n} has no way to {m}: {history}", self.seed);
                for kind in ways {
                    let is_up = peer.hosts[kind].is_up();
                    assert!(
                        is_up,
                        "seed {}: {n} sends to {m} by {kind}, which is down: {history}",
                        self.seed
                    );
                }
            }
        }
    }

    /// Lets time go by, and looks at everybody all the while.
    async fn pass(&self, time: Duration) {
        for _ in 0..time.as_millis() / LOOK.as_millis() {
            sleep(LOOK).await;
            self.check();
        }
    }

    /// Everybody has only `kind`, and says so.
    fn check_end(&self, kind: &str) {
        let seed = self.seed;
        for (n, machine) in self.machines.iter().enumerate() {
            for (other, host) in &machine.hosts {
                let is_it = *other == kind;
                assert_eq!(host.is_up(), is_it, "seed {seed}: {other} of {n}");
                assert_eq!(host.routes().len(), if is_it { NODES - 1 } else { 0 });
            }
            let status = self.running[n].as_ref().unwrap().1.status();
            assert!(status.is_ready(), "seed {seed}: {:?}", status.faults);
            let LeaseAttrs { backend_type, second, .. } = status.lease.unwrap().attrs;
            assert_eq!((&*backend_type, second), (kind, None), "seed {seed}");
            assert_eq!(status.config.unwrap().backend().kind(), kind);
            assert_eq!(status.last_sync.unwrap().migration, None, "seed {seed}");
        }
    }

    async fn settle(&mut self, kind: &str) {
        for n in 0..NODES {
            self.cluster.heal(&self.machines[n].id);
            for host in self.machines[n].hosts.values() {
                host.fail_starts(0);
                host.fail_syncs(0);
            }
            if self.running[n].is_none() {
                self.start(n).await;
            }
        }
        self.pass(Duration::from_secs(90)).await;
        self.check_end(kind);
    }
}

/// What else happens than a change of the backend.
async fn accident(world: &mut World, random: &mut SplitMix64, cuts: u64) {
    let n = random.below(NODES as u64) as usize;
    let id = world.machines[n].id.clone();
    let what = random.below(6 + cuts);
    world.history.push(format!("{what} at {n}"));
    match what {
        0 => world.kill(n),
        1 => {
            world.kill(n);
            world.start_if_it_can(n).await;
        }
        2 => world.start_if_it_can(n).await,
        3 => world.cluster.delay(&id, Duration::from_millis(random.below(2000))),
        4 => world.cluster.heal(&id),
        5 => {
            for host in world.machines[n].hosts.values() {
                host.fail_starts(random.below(3) as u32);
                host.fail_syncs(random.below(3) as u32);
            }
        }
        _ => world.cluster.cut(&id, Cut::Hang),
    }
}

impl World {
    async fn start_if_it_can(&mut self, n: usize) {
        if self.running[n].is_none() {
            self.cluster.heal(&self.machines[n].id);
            self.start(n).await;
        }
    }
}

fn run(future: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(future);
}

#[test]
fn all_nodes_move_and_nothing_is_left_of_the_old_backend() {
    run(async {
        let mut world = World::new(1).await;
        world.configure("two");
        world.pass(Duration::from_secs(5)).await;
        let status = world.running[0].as_ref().unwrap().1.status();
        assert!(status.is_ready(), "{:?}", status.faults);
        let migration = status.last_sync.unwrap().migration.unwrap();
        assert_eq!((migration.moved, migration.waiting, migration.leaving), (2, 0, true));
        world.settle("two").await;
    });
}

#[test]
fn a_node_that_lags_is_waited_for_and_named() {
    run(async {
        let mut world = World::new(1).await;
        let lagging = world.machines[2].id.clone();
        world.cluster.cut(&lagging, Cut::Hang);
        world.configure("two");
        world.pass(Duration::from_secs(40)).await;
        let status = world.running[0].as_ref().unwrap().1.status();
        assert!(status.is_ready(), "{:?}", status.faults);
        let migration = status.last_sync.unwrap().migration.unwrap();
        let text = migration.to_string();
        assert!(text.contains("1 of 2 peers") && text.contains("needed by n2 "), "{text}");
        world.settle("two").await;
    });
}

#[test]
fn a_third_backend_waits_until_the_second_is_reached() {
    run(async {
        let mut world = World::new(1).await;
        world.configure("two");
        world.pass(Duration::from_secs(2)).await;
        world.configure("three");
        world.pass(Duration::from_secs(2)).await;
        let status = world.running[0].as_ref().unwrap().1.status();
        assert_eq!(status.last_sync.unwrap().migration.unwrap().then.as_deref(), Some("three"));
        world.settle("three").await;
    });
}

/// What a node does not name any more it does not name again before that was taken down: peers know by then what was published of it.
#[test]
fn nodes_that_restart_while_they_linger_take_down_what_they_left_before_it_comes_back() {
    for restarted in 0..=NODES {
        run(async move {
            let mut world = World::new(1).await;
            world.configure("two");
            world.pass(Duration::from_secs(5)).await;
            let status = world.running[0].as_ref().unwrap().1.status();
            assert!(status.last_sync.unwrap().migration.unwrap().leaving);
            for n in 0..restarted {
                world.kill(n);
            }
            world.configure("one");
            for n in 0..restarted {
                world.start(n).await;
            }
            world.pass(Duration::from_secs(5)).await;
            for node in world.running.iter().flatten() {
                let status = node.1.status();
                assert_eq!(&*status.lease.unwrap().attrs.backend_type, "two");
                assert_eq!(
                    status.last_sync.unwrap().migration.unwrap().then.as_deref(),
                    Some("one")
                );
            }
            world.settle("one").await;
            let started = |machine: &Machine| machine.hosts["one"].started().len();
            let wanted = (0..NODES).map(|n| if n < restarted { 3 } else { 2 });
            assert!(world.machines.iter().map(started).eq(wanted), "{restarted} restarted");
        });
    }
}

#[test]
fn a_node_that_was_away_while_the_backend_changed_is_reached_by_the_old_one() {
    run(async {
        let mut world = World::new(1).await;
        world.kill(1);
        world.configure("two");
        world.pass(Duration::from_secs(30)).await;
        world.start(1).await;
        world.settle("two").await;
    });
}

#[test]
fn a_backend_that_does_not_start_is_named_and_the_old_one_goes_on() {
    run(async {
        let mut world = World::new(1).await;
        world.machines[0].hosts["two"].fail_starts(u32::MAX);
        world.configure("two");
        world.pass(Duration::from_secs(30)).await;
        let status = world.running[0].as_ref().unwrap().1.status();
        assert!(status.is_ready());
        let texts: Vec<_> = status.faults.iter().map(ToString::to_string).collect();
        assert!(texts[0].contains("start two beside one: cannot start"), "{texts:?}");
        world.settle("two").await;
    });
}

#[test]
fn whatever_happens_on_the_way_there_and_back_no_packet_is_without_a_way() {
    for seed in 0..runs() {
        run(async move {
            let mut random = SplitMix64::new(seed);
            let mut world = World::new(seed).await;
            let mut wanted = "one";
            let goes_back = random.below(2) == 0;
            for kind in ["two", "one"].into_iter().take(1 + usize::from(goes_back)) {
                world.configure(kind);
                wanted = kind;
                for _ in 0..random.below(10) {
                    // Who is cut off from the store learns of the way back too late.
                    accident(&mut world, &mut random, if goes_back { 0 } else { 2 }).await;
                    world.pass(Duration::from_millis(random.below(4000))).await;
                }
            }
            world.settle(wanted).await;
        });
    }
}

#[test]
fn however_often_the_backend_changes_no_packet_is_without_a_way() {
    for seed in 0..runs() {
        run(async move {
            let mut random = SplitMix64::new(seed);
            let mut world = World::new(seed).await;
            let mut wanted = "one";
            for _ in 0..4 + random.below(6) {
                wanted = if random.below(2) == 0 { "one" } else { "two" };
                world.configure(wanted);
                accident(&mut world, &mut random, 0).await;
                world.pass(Duration::from_millis(random.below(4000))).await;
            }
            world.settle(wanted).await;
        });
    }
}

/// As many as take some seconds.
fn runs() -> u64 {
    let runs = std::env::var("FLANNEL_SIM_RUNS").ok().and_then(|text| text.parse().ok());
    runs.unwrap_or(if cfg!(debug_assertions) { 20 } else { 200 })
}
