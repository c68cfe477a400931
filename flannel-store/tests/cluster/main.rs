//! Whole clusters in paused time: real nodes, the real allocation over a memory registry, hosts in
//! memory, and everything that can go wrong, chosen by a seed.
//!
//! Of ten runs, six have up to 10 nodes, three up to 40, and one up to 100: what goes wrong mostly takes few nodes and many
//! runs. A third begins with all nodes starting at once, a third with none.
//!
//! `FLANNEL_SIM_RUNS=n` makes as many runs as wanted, from the seed `FLANNEL_SIM_FIRST=n` on. `FLANNEL_SIM_SEED=n` repeats one: the
//! seed decides everything, and a run that is repeated has the same history to the last byte.

mod checks;
mod world;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::Duration,
};

use flannel_store::{Change, Record, Registry, testing::FaultyCluster};
use futures::StreamExt;
use tokio::time::sleep;

use world::World;

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
    let (runs, first) = (seeds.end - seeds.start, seeds.start);
    let nodes_of = |seed| {
        let history = checked_run(seed);
        if runs == 1 {
            println!("{}\nhistory {:016x}", history.lines.join("\n"), history.hash());
        }
        history.nodes
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let nodes: Vec<usize> = thread::scope(|scope| {
        let every = |n| seeds.clone().skip(n).step_by(threads);
        let some = |n| scope.spawn(move || every(n).map(nodes_of).collect::<Vec<_>>());
        let running: Vec<_> = (0..threads).map(some).collect();
        running
            .into_iter()
            .flat_map(|some| some.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let (all, longest) = (nodes.iter().sum::<usize>(), nodes.iter().max().unwrap_or(&0));
    println!("{runs} runs from seed {first} on, {all} nodes in all, {longest} at most");
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
async fn audit(cluster: FaultyCluster) -> String {
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
pub(crate) struct History {
    pub(crate) lines: Vec<String>,
    pub(crate) nodes: usize,
}

impl History {
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.lines.hash(&mut hasher);
        hasher.finish()
    }
}
