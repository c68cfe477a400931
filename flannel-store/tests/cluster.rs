//! Whole clusters in paused time: real nodes, the real allocation over a memory registry, hosts in
//! memory, and everything that can go wrong, chosen by a seed.
//!
//! Of ten runs, six have up to 10 nodes, three up to 40, and one up to 100: what goes wrong mostly takes few nodes and many
//! runs. A third begins with all nodes starting at once, a third with none.
//!
//! `FLANNEL_SIM_RUNS=n` makes as many runs as wanted, from the seed `FLANNEL_SIM_FIRST=n` on. `FLANNEL_SIM_SEED=n` repeats one: the
//! seed decides everything, and a run that is repeated has the same history to the last byte.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use flannel_core::{
    LeaseAttrs, NetworkConfig, Node, NodeHandle, NodeId, NodeOptions, Status, Subnet,
    testing::FakeBackend,
};
use flannel_store::{
    Change, Cut, LeaseOptions, Lifetime, MemoryCluster, NewRecord, Record, Registry,
};
use futures::StreamExt;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Short, so that leases expire within a run.
const TTL: Duration = Duration::from_secs(60);

/// After this long without faults everybody has noticed everything: it is more than the longest call and the longest wait
/// between attempts, and then a lease's life.
const SETTLE: Duration = Duration::from_secs(180);

/// The owner of what operators write.
const STRANGER: &str = "stranger";

/// Things that happen in one run.
const STEPS: u64 = 40;

/// How many runs there are without `FLANNEL_SIM_RUNS`: what takes a few seconds.
const RUNS: u64 = if cfg!(debug_assertions) { 200 } else { 2000 };

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, expected a number")))
}

#[test]
fn whatever_happens_no_subnet_is_held_twice_and_everybody_converges() {
    let seeds = match variable("FLANNEL_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = variable("FLANNEL_SIM_FIRST").unwrap_or_default();
            first..first + variable("FLANNEL_SIM_RUNS").unwrap_or(RUNS)
        }
    };
    let (mut nodes, mut longest) = (0, 0);
    for seed in seeds.clone() {
        let history = checked_run(seed);
        nodes += history.nodes;
        longest = longest.max(history.nodes);
        if seeds.end - seeds.start == 1 {
            println!("{}\nhistory {:016x}", history.lines.join("\n"), history.hash());
        }
    }
    let (runs, first) = (seeds.end - seeds.start, seeds.start);
    println!("{runs} runs from seed {first} on, {nodes} nodes in all, {longest} at most");
}

#[test]
fn a_seed_means_one_history() {
    for seed in (0..40).filter(|seed| World::new(*seed).machines.len() < 50) {
        let (one, two) = (checked_run(seed), checked_run(seed));
        for (n, (one, two)) in one.lines.iter().zip(&two.lines).enumerate() {
            assert_eq!(one, two, "line {n} of seed {seed}");
        }
        assert_eq!(one.hash(), two.hash(), "seed {seed}");
    }
}

/// One run from its seed. If it fails, says what happened and how to repeat it.
fn checked_run(seed: u64) -> History {
    let mut world = World::new(seed);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&mut world))) {
        println!("{}", world.history.lines.join("\n"));
        println!("repeat with FLANNEL_SIM_SEED={seed}");
        resume_unwind(panic);
    }
    world.history
}

fn run(world: &mut World) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
        let audit = tokio::spawn(audit(world.cluster.clone()));
        world.start_some();
        for _ in 0..STEPS {
            world.step();
            let wait = Duration::from_millis(world.random.below(20_000));
            sleep(wait).await;
            world.check_always();
            world.note();
            assert!(!audit.is_finished(), "{}", audit.await.unwrap());
        }
        world.heal();
        sleep(SETTLE).await;
        world.check_always();
        world.check_settled();
        world.note();
        assert!(!audit.is_finished(), "{}", audit.await.unwrap());
    });
}

/// Follows all changes until a node has written over what was another's; says which. What it cannot see because the cluster
/// has forgotten it does not count.
async fn audit(cluster: MemoryCluster) -> String {
    let registry = cluster.registry("auditor".parse().unwrap());
    loop {
        let snapshot = registry.list().await.expect("it is not cut off");
        let owner = |record: Record| record.owner.map(|owner| (record.key, owner));
        let mut owners: BTreeMap<_, _> =
            snapshot.records.iter().cloned().filter_map(owner).collect();
        let mut changes = registry.watch(snapshot);
        while let Some(Ok(change)) = changes.next().await {
            match change {
                Change::Delete(key) => drop(owners.remove(&key)),
                Change::Put(record) => {
                    let key = record.key.clone();
                    let Some((_, owner)) = owner(record) else { continue };
                    let before = owners.insert(key.clone(), owner.clone());
                    if let Some(before) = before.filter(|before| *before != owner)
                        && owner.as_str() != STRANGER
                    {
                        return format!("{owner} has written over the lease of {before} at {key}");
                    }
                }
            }
        }
    }
}

/// What happened in one run.
#[derive(Default)]
struct History {
    lines: Vec<String>,
    nodes: usize,
}

impl History {
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.lines.hash(&mut hasher);
        hasher.finish()
    }
}

/// `SplitMix64`, so that a seed means the same run everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// One machine with its node. The host outlives the node.
struct Machine {
    id: NodeId,
    host: FakeBackend,
    address: Ipv4Addr,
    running: Option<(JoinHandle<()>, NodeHandle)>,
}

struct World {
    cluster: MemoryCluster,
    machines: Vec<Machine>,
    random: Random,
    history: History,
    /// When somebody last took or wrote the lease at a key past the protocol.
    meddled: BTreeMap<String, Instant>,
    /// Leases of nodes of flannel, which look at no lease but their own when they write.
    flannels: BTreeMap<Subnet, IpAddr>,
    config: NetworkConfig,
    /// How many addresses machines have had.
    addresses: u16,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let most = random.pick(&[10, 10, 10, 10, 10, 10, 40, 40, 40, 100]);
        let count = 1 + random.below(most) as u8;
        // From too few subnets to plenty, and sometimes hardly any memory of changes.
        let len = random.pick(&[25, 24, 23, 20]);
        let dual = random.pick(&[true, false]);
        // As many blocks of IPv6 as of IPv4.
        let config: NetworkConfig = format!(
            r#"{{"Network":"10.3.0.0/{len}","SubnetLen":30,
                 "EnableIPv6":{dual},"IPv6Network":"fd00::/{}","IPv6SubnetLen":126}}"#,
            96 + len
        )
        .parse()
        .unwrap();
        let memory = random.pick(&[2, 16, 1024]);
        let machine = |n| {
            let address = Ipv4Addr::new(192, 0, 2, 1 + n);
            let id = format!("n{n}").parse().unwrap();
            Machine { id, host: FakeBackend::new(address), address, running: None }
        };
        Self {
            cluster: MemoryCluster::with_history(&config, memory),
            machines: (0..count).map(machine).collect(),
            random,
            history: History {
                lines: vec![format!(
                    "{count} nodes, /{len}, dual: {dual}, {memory} changes remembered"
                )],
                nodes: count.into(),
            },
            meddled: BTreeMap::new(),
            flannels: BTreeMap::new(),
            config,
            addresses: 0,
        }
    }

    /// How many subnets there are for our nodes.
    fn room(&self) -> usize {
        let is_free = |key: String| {
            let subnet: Subnet = key.parse().unwrap();
            !self.flannels.keys().any(|other| other.overlaps(&subnet))
        };
        let blocks = 1..=self.config.ipv4().unwrap().count() as u32;
        let v4 = |n: &u32| is_free(format!("{}-30", Ipv4Addr::from(0x0a03_0000 + 4 * n)));
        let v6 = |n: &u32| {
            is_free(format!("{}-126", Ipv6Addr::from((0xfd00 << 112) + 4 * u128::from(*n))))
        };
        let free = blocks.clone().filter(v4).count();
        match self.config.ipv6() {
            Some(_) => free.min(blocks.filter(v6).count()),
            None => free,
        }
    }

    fn start(&mut self, n: usize) {
        let seed = self.random.next();
        let machine = &mut self.machines[n];
        if machine.running.is_some() {
            return;
        }
        let options = LeaseOptions { ttl: TTL, ..LeaseOptions::default() };
        let store = self.cluster.store_with(machine.id.clone(), options);
        let bulk_removal_grace = Duration::from_secs(60);
        let options = NodeOptions { seed, bulk_removal_grace, ..NodeOptions::default() };
        let node = Node::from_parts(Arc::new(store), Arc::new(machine.host.clone()), options);
        let handle = node.handle();
        let task = tokio::spawn(async move {
            let error = node.run().await.expect_err("a node only ends with an error");
            panic!("a node ended: {error}");
        });
        machine.running = Some((task, handle));
    }

    /// None, half or all of the nodes start at once.
    fn start_some(&mut self) {
        let share = self.random.pick(&[0, 1, 2]);
        self.history.lines.push(format!("{share} of 2 nodes start"));
        for n in 0..self.machines.len() {
            if self.random.below(2) < share {
                self.start(n);
            }
        }
    }

    /// One random thing happens.
    fn step(&mut self) {
        let n = self.random.below(self.machines.len() as u64) as usize;
        let key = self.some_key();
        let id = self.machines[n].id.clone();
        let what = self.random.below(19);
        self.history.lines.push(format!("{what} at {id}, {key:?}"));
        match what {
            0..4 => self.start(n),
            4 => {
                if let Some((task, _)) = self.machines[n].running.take() {
                    task.abort();
                }
            }
            5 => self.cluster.cut(&id, Cut::Fail),
            6 => self.cluster.cut(&id, Cut::Hang),
            7 | 8 => self.cluster.heal(&id),
            9 => self.cluster.delay(&id, Duration::from_millis(self.random.below(3000))),
            10 => self.machines[n].host.fail_syncs(self.random.below(4) as u32),
            11 => {
                let time = Duration::from_millis(self.random.below(300));
                self.machines[n].host.slow_syncs(time);
            }
            12 => self.machines[n].host.meddle(|routes| {
                routes.pop_first();
            }),
            13 => {
                // An address that was given to nobody before: whoever had it may be cut off, and live.
                self.addresses += 1;
                let [high, low] = self.addresses.to_be_bytes();
                self.move_to(n, Ipv4Addr::new(10, 200, high, low));
            }
            14 | 15 => {
                if let Some(key) = key {
                    let gone = if what == 14 {
                        self.cluster.expire(&key)
                    } else {
                        self.cluster.remove(&key)
                    };
                    self.meddled.insert(key, Instant::now());
                    self.history.lines.push(format!("gone: {gone}"));
                }
            }
            16 => self.cluster.compact(),
            17 => self.overlap(key),
            _ => self.intrude(key),
        }
    }

    fn move_to(&mut self, n: usize, address: Ipv4Addr) {
        self.machines[n].address = address;
        self.machines[n].host.set_address(address);
    }

    /// A node of flannel with another configuration takes addresses of `key`, and does not see that they are taken.
    fn overlap(&mut self, key: Option<String>) {
        let Some(subnet) = key.and_then(|key| key.parse::<Subnet>().ok()) else { return };
        let (v4, v6) = (subnet.ipv4(), subnet.ipv6());
        let longer = v4.map(|v4| format!("{}-31", v4.network()));
        let alone = v6.and(v4).map(|v4| format!("{}-30", v4.network()));
        let other = v4.zip(v6).map(|(v4, v6)| format!("{}-31&{}-126", v4.network(), v6.network()));
        let keys: Vec<String> = [longer, alone, other].into_iter().flatten().collect();
        if keys.is_empty() || self.flannels.len() == 3 {
            return;
        }
        let key = &keys[self.random.below(keys.len() as u64) as usize];
        let taken: Subnet = key.parse().unwrap();
        if self.flannels.keys().any(|other| other.overlaps(&taken)) {
            return;
        }
        let address = Ipv4Addr::new(198, 51, 100, 10 + self.flannels.len() as u8);
        let attrs = LeaseAttrs {
            public_ip: Some(address),
            backend_type: "fake".into(),
            ..LeaseAttrs::default()
        };
        let write = NewRecord { value: attrs.to_string(), owner: None, ttl: Some(100 * SETTLE) };
        self.cluster.put(key, &write);
        self.history.lines.push(format!("flannel takes {key}"));
        for overlapped in self.leases().into_keys().filter(|other| other.overlaps(&taken)) {
            self.meddled.insert(overlapped.to_string(), Instant::now());
        }
        self.flannels.insert(taken, address.into());
    }

    /// A stranger takes a subnet for a while, in use or not, or writes what is no lease.
    fn intrude(&mut self, key: Option<String>) {
        let attrs = LeaseAttrs {
            public_ip: Some(Ipv4Addr::new(198, 51, 100, 1)),
            backend_type: "fake".into(),
            ..LeaseAttrs::default()
        };
        let (key, value) = match key {
            Some(key) => (key, attrs.to_string()),
            None => ("stray".into(), "no lease".into()),
        };
        let owner = Some(STRANGER.parse().unwrap());
        self.cluster.put(&key, &NewRecord { value, owner, ttl: Some(TTL) });
        self.meddled.insert(key, Instant::now());
    }

    fn some_key(&mut self) -> Option<String> {
        let mut records = self.cluster.records();
        records.retain(|it| it.subnet().is_none_or(|key| !self.flannels.contains_key(&key)));
        let n = self.random.below(records.len() as u64 + 1) as usize;
        records.into_iter().nth(n).map(|record| record.key)
    }

    /// The leases that count now, with their owners.
    fn leases(&self) -> BTreeMap<Subnet, Option<NodeId>> {
        let records = self.cluster.records().into_iter();
        records
            .filter(|record| record.lifetime != Lifetime::Lapsed)
            .filter_map(|record| Some((record.key.parse().ok()?, record.owner)))
            .collect()
    }

    /// What holds at every moment.
    fn check_always(&self) {
        let leases = self.leases();
        let taken: Vec<_> =
            leases.keys().filter(|subnet| !self.flannels.contains_key(subnet)).collect();
        for (n, one) in taken.iter().enumerate() {
            let mut others = taken[..n].iter();
            let other = others.find(|other| other.overlaps(one));
            assert_eq!(other, None, "this and {one} are both leased");
        }
        let mut trusted = BTreeMap::<Subnet, &NodeId>::new();
        for Machine { id, running, .. } in &self.machines {
            let Some((task, handle)) = running else { continue };
            assert!(!task.is_finished(), "{id} ended");
            let status = handle.status();
            let Some(lease) = status.lease.as_ref().filter(|_| status.trusts_lease()) else {
                continue;
            };
            let meddled = self.meddled.get(&lease.subnet.to_string());
            if meddled.is_some_and(|when| when.elapsed() < TTL) {
                continue;
            }
            let other = trusted.iter().find(|(other, _)| other.overlaps(&lease.subnet));
            assert_eq!(other, None, "{id} and another trust their lease of {}", lease.subnet);
            trusted.insert(lease.subnet, id);
            let owner = leases.get(&lease.subnet).and_then(Option::as_ref);
            assert_eq!(owner, Some(id), "{id} trusts its lease of {}", lease.subnet);
        }
    }

    /// Writes down what everybody knows.
    fn note(&mut self) {
        let mut line = String::new();
        for record in self.cluster.records() {
            let owner = record.owner.as_ref().map_or("-", NodeId::as_str);
            line += &format!("{} {owner} {}; ", record.key, record.revision);
        }
        for machine in &self.machines {
            let Some((_, handle)) = &machine.running else { continue };
            let status = handle.status();
            let subnet = status.lease.as_ref().map(|lease| lease.subnet);
            let Status { peers, syncs, writes, in_sync, faults, .. } = status;
            // Without their times, which differ between two runs.
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            line += &format!(
                "{}: {subnet:?} {peers:?} {syncs} {writes} {in_sync} {faults:?}; ",
                machine.id
            );
        }
        self.history.lines.push(line);
    }

    /// Removes all faults, and starts everybody.
    fn heal(&mut self) {
        self.history.lines.push("healed".into());
        for n in 0..self.machines.len() {
            let machine = &self.machines[n];
            self.cluster.heal(&machine.id);
            machine.host.fail_syncs(0);
            machine.host.slow_syncs(Duration::ZERO);
            self.start(n);
        }
    }

    /// What holds once everybody had time without faults.
    fn check_settled(&self) {
        let room = self.room();
        let mut held = BTreeMap::<Subnet, &Machine>::new();
        for machine in &self.machines {
            let (_, handle) = machine.running.as_ref().expect("healed");
            let status = handle.status();
            if status.lease.is_none() && room < self.machines.len() {
                continue;
            }
            assert!(status.is_ready(), "{} is not ready: {status:?}", machine.id);
            let lease = status.lease.expect("ready");
            assert_eq!(lease.attrs.public_ip, Some(machine.address), "{}", machine.id);
            if let Some(other) = held.insert(lease.subnet, machine) {
                panic!("{} and {} both hold {}", machine.id, other.id, lease.subnet);
            }
        }
        assert_eq!(held.len(), room.min(self.machines.len()), "not all subnets are in use");

        let owner = |machine: &Machine| Some(machine.id.clone());
        let mut believed: BTreeMap<_, _> = held.iter().map(|(s, m)| (*s, owner(m))).collect();
        believed.extend(self.flannels.keys().map(|subnet| (*subnet, None)));
        for flannels in self.flannels.keys() {
            let moved = held.keys().all(|subnet| !subnet.overlaps(flannels));
            assert!(moved, "a node stays beside flannel's {flannels}");
        }
        assert_eq!(self.leases(), believed, "store and nodes disagree");

        let mut all = self.flannels.clone();
        all.extend(held.iter().map(|(subnet, peer)| (*subnet, IpAddr::from(peer.address))));
        for (own, machine) in &held {
            let mut routes = machine.host.routes();
            assert_eq!(routes.insert(*own, machine.address.into()), None, "a route to itself");
            assert_eq!(routes, all, "routes of {}", machine.id);
        }
    }
}
