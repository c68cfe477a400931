//! Nodes that start together on an empty network, round after round: whatever they hold, no address is held twice.
//!
//! `FLANNEL_RACE_ROUNDS=n` makes as many rounds as wanted.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use flannel_core::{LeaseAttrs, NetworkConfig, SplitMix64, Store, Subnet};
use flannel_store::{
    LeaseOptions, Registry, RegistryStore,
    testing::{FaultyCluster, RegistryFixture},
};
use futures::future::join_all;
use tokio::time::sleep;

use table::{Rows, Table};

#[path = "support/table.rs"]
mod table;

const NODES: u64 = 30;

/// Rounds without `FLANNEL_RACE_ROUNDS`: what takes a few seconds.
const ROUNDS: u64 = if cfg!(debug_assertions) { 100 } else { 1000 };

/// Dual stack with room for 127 nodes, so that they meet.
const DUAL: &str = r#"{"Network":"10.3.0.0/17","EnableIPv6":true,"IPv6Network":"fd00::/57"}"#;

/// What a network's configuration may be changed to while nodes start.
const CHANGED: [&str; 4] = [
    r#"{"Network":"10.3.0.0/17"}"#,
    r#"{"Network":"10.3.0.0/17","SubnetLen":25}"#,
    r#"{"Network":"10.3.0.0/17","SubnetLen":23,"EnableIPv6":true,"IPv6Network":"fd00::/57"}"#,
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/57","IPv6SubnetLen":63}"#,
];

/// What a node may have had before.
fn hint(random: &mut SplitMix64) -> Option<Subnet> {
    let (v4, v6) = (random.below(32), 1 + random.below(127));
    (random.below(3) == 0).then(|| format!("10.3.{v4}.0-24&fd00:0:0:{v6:x}::-64").parse().unwrap())
}

fn table(config: &str, compares_keys: bool) -> Table {
    let rows = Rows { config: Some(config.into()), compares_keys, ..Rows::default() };
    Table(Arc::new(Mutex::new(rows)))
}

struct KeysAlone(Table);

impl RegistryFixture for KeysAlone {
    async fn build(config: &str) -> Self {
        Self(table(config, true))
    }

    async fn registry(&self, _node: &str) -> impl Registry {
        self.0.clone()
    }
}

mod keyed {
    flannel_store::registry_conformance!(super::KeysAlone);
}

fn rounds(default: u64) -> u64 {
    match std::env::var("FLANNEL_RACE_ROUNDS") {
        Ok(text) => text.parse().expect("FLANNEL_RACE_ROUNDS is a number"),
        Err(_) => default,
    }
}

/// One round: all nodes start within some milliseconds, and in some rounds the configuration is changed meanwhile.
async fn round<R: Registry>(seed: u64, of: impl Fn(&str) -> R) {
    let mut random = SplitMix64::new(seed);
    let operator = of("operator");
    let start = |n: u64, random: &mut SplitMix64| {
        let (wait, hint) = (Duration::from_micros(random.below(5000)), hint(random));
        let name = format!("n{n}");
        let options = LeaseOptions { hint, ..LeaseOptions::default() };
        let store = RegistryStore::new(of(&name), name.parse().unwrap(), options);
        async move {
            sleep(wait).await;
            let public_ip = Some([192, 0, 2, n as u8 + 1].into());
            store.acquire(&LeaseAttrs { public_ip, ..LeaseAttrs::default() }).await.unwrap()
        }
    };
    let nodes: Vec<_> = (0..NODES).map(|n| start(n, &mut random)).collect();
    let change = async {
        if random.below(2) == 0 {
            sleep(Duration::from_micros(random.below(5000))).await;
            let text = CHANGED[random.below(CHANGED.len() as u64) as usize];
            let was = operator.config().await.unwrap();
            operator.set_config(&was, text).await.unwrap();
        }
    };
    let (leases, ()) = futures::join!(join_all(nodes), change);
    let held: Vec<Subnet> = leases.iter().map(|lease| lease.lease().subnet).collect();
    for (n, one) in held.iter().enumerate() {
        for other in &held[..n] {
            assert!(!one.overlaps(other), "round {seed}: {one} and {other} are both held");
        }
    }
    let mut stored = operator.list().await.unwrap().records;
    stored.retain(|record| record.subnet().is_none_or(|subnet| !held.contains(&subnet)));
    assert_eq!(stored, [], "round {seed}: nobody holds these");
}

fn dual() -> NetworkConfig {
    DUAL.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn nodes_that_start_together_share_no_address_in_memory() {
    for seed in 0..rounds(ROUNDS) {
        let cluster = FaultyCluster::new(&dual());
        let mut random = SplitMix64::new(!seed);
        for n in 0..NODES {
            let delay = Duration::from_micros(random.below(5000));
            cluster.delay(&format!("n{n}").parse().unwrap(), delay);
        }
        round(seed, |name| cluster.registry(name.parse().unwrap())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_start_together_share_no_address_in_a_table() {
    for seed in 0..rounds(ROUNDS) {
        let table = table(DUAL, false);
        round(seed, |_| table.clone()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_start_together_share_no_address_where_keys_are_compared() {
    for seed in 0..rounds(ROUNDS) {
        let table = table(DUAL, true);
        round(seed, |_| table.clone()).await;
    }
}

#[cfg(feature = "file")]
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_share_no_address_in_a_folder() {
    use flannel_store::{FileRegistry, FileStore};

    // Each flushes the disk some hundred times.
    for seed in 0..rounds(if cfg!(debug_assertions) { 5 } else { 20 }) {
        let folder = tempfile::tempdir().unwrap();
        FileStore::init(folder.path(), &dual()).await.unwrap();
        let mut registries = std::collections::BTreeMap::new();
        for name in (0..NODES).map(|n| format!("n{n}")).chain(["operator".into()]) {
            registries.insert(name, FileRegistry::open(folder.path()).await.unwrap());
        }
        round(seed, |name| registries[name].clone()).await;
    }
}
