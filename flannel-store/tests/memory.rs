//! The contract of a store, kept in memory; and what only a cluster in memory can be made to do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flannel_core::{
    LeaseAttrs, LeaseEvent, NodeId, Store, StoreError,
    testing::{Entry, StoreFixture},
};
use flannel_store::{
    LeaseOptions, Lifetime, MemoryCluster, NewRecord, Registry,
    testing::{Cut, FaultyCluster, RegistryFixture},
    watch_network_config,
};
use futures::{StreamExt, stream::BoxStream};

struct Memory(MemoryCluster);

impl StoreFixture for Memory {
    async fn build(config: &str) -> Self {
        Self(MemoryCluster::new(&config.parse().unwrap()))
    }

    async fn store(&self, node: &str) -> Arc<dyn Store> {
        Arc::new(self.0.store(node.parse().unwrap()))
    }

    async fn put(&self, key: &str, value: &str) {
        self.0.put(key, &by_hand(value));
    }

    async fn remove(&self, key: &str) {
        self.0.remove(key);
    }

    async fn entries(&self) -> BTreeMap<String, Entry> {
        let entry = |record: flannel_store::Record| Entry {
            value: record.value.unwrap(),
            expires: record.lifetime == Lifetime::Bounded,
        };
        let records = self.0.records().into_iter();
        records.map(|record| (record.key.clone(), entry(record))).collect()
    }

    async fn set_config(&self, config: Option<&str>) {
        self.0.set_config(config);
    }

    async fn outrun(&self) {
        self.0.compact();
    }

    async fn open_watches(&self) -> usize {
        self.0.open_watches()
    }
}

flannel_core::store_conformance!(Memory);

impl RegistryFixture for MemoryFixture {
    async fn build(config: &str) -> Self {
        Self(MemoryCluster::new(&config.parse().unwrap()))
    }

    async fn registry(&self, _name: &str) -> impl Registry {
        self.0.registry()
    }
}

struct MemoryFixture(MemoryCluster);

mod registry {
    flannel_store::registry_conformance!(super::MemoryFixture);
}

fn by_hand(value: &str) -> NewRecord {
    NewRecord { value: value.into(), owner: None, ttl: None }
}

fn cluster() -> FaultyCluster {
    FaultyCluster::new(&r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap())
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some([192, 0, 2, last].into()), ..LeaseAttrs::default() }
}

/// The next item of a watch. A minute goes by at once when everybody waits.
async fn item(
    watch: &mut BoxStream<'static, Result<LeaseEvent, StoreError>>,
) -> Result<LeaseEvent, StoreError> {
    let item = tokio::time::timeout(2 * TTL, watch.next()).await;
    item.expect("an event").expect("a watch never ends")
}

const TTL: Duration = Duration::from_secs(60);

fn short() -> LeaseOptions {
    LeaseOptions { ttl: TTL, ..LeaseOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_lags_behind_the_history_gets_a_reset() {
    let config = r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap();
    for (changes, resets) in [(8, 1), (9, 2)] {
        let cluster = MemoryCluster::with_history(&config, 8);
        let store = cluster.store(node("watcher"));
        let mut watch = store.watch();
        item(&mut watch).await.unwrap();
        for n in 1..=changes {
            cluster.put(&format!("10.3.{n}.0-24"), &by_hand(&at(n).to_string()));
        }
        let event = item(&mut watch).await.unwrap();
        let lost = matches!(&event, LeaseEvent::Reset(leases) if leases.len() == 9);
        assert_eq!(lost, changes == 9, "{event:?}");
        assert_eq!(store.stats().resets, resets);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_fails_or_hangs_and_goes_on_when_healed() {
    let cluster = cluster();
    let (one, two) = (cluster.store(node("n1")), cluster.store(node("n2")));
    let mut watch = one.watch();
    item(&mut watch).await.unwrap();
    let mut lease = one.acquire(&at(1)).await.unwrap();
    item(&mut watch).await.unwrap();

    cluster.cut(&node("n1"), Cut::Hang);
    assert!(tokio::time::timeout(TTL, lease.renew()).await.is_err());
    let other = two.acquire(&at(2)).await.unwrap();
    assert!(tokio::time::timeout(TTL, watch.next()).await.is_err());

    cluster.cut(&node("n1"), Cut::Fail);
    let error = lease.renew().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "n1 is cut off from the store"
    );
    for _ in 0..10 {
        item(&mut watch).await.unwrap_err();
    }
    // Waits grow up to five seconds.
    let before = tokio::time::Instant::now();
    item(&mut watch).await.unwrap_err();
    assert!((2500..=5001).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());

    cluster.heal(&node("n1"));
    lease.renew().await.unwrap();
    let LeaseEvent::Reset(leases) = item(&mut watch).await.unwrap() else {
        panic!("expected a reset");
    };
    assert!(leases.iter().any(|it| **it == *other.lease()));
    assert_eq!(leases.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_config_is_followed_without_a_node_and_told_anew_after_an_outage() {
    let cluster = cluster();
    let mut configs = watch_network_config(Arc::new(cluster.registry(node("n1"))));
    let config = configs.next().await.unwrap().unwrap();
    assert_eq!(Ok(config.clone()), r#"{"Network":"10.3.0.0/16"}"#.parse());
    cluster.cut(&node("n1"), Cut::Fail);
    let error = configs.next().await.unwrap();
    assert!(matches!(error, Err(StoreError::Unavailable { .. })), "{error:?}");
    cluster.heal(&node("n1"));
    let again = tokio::time::timeout(TTL, configs.next()).await.expect("the outage is over");
    assert_eq!(again.unwrap().unwrap(), config);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_costs_nothing() {
    let cluster = cluster();
    let store = cluster.store(node("n1"));
    let mut lease = store.acquire(&at(1)).await.unwrap();
    let key = lease.lease().subnet.to_string();
    // Half of the delay goes by before the write, half after it, when the line is cut.
    cluster.delay(&node("n1"), Duration::from_secs(2));
    let published = tokio::time::timeout(Duration::from_millis(1500), lease.publish(&at(2))).await;
    assert!(published.is_err());
    assert_eq!(cluster.records()[0].value, Ok(at(2).to_string()));
    assert_eq!(lease.lease().attrs, at(1));
    cluster.heal(&node("n1"));
    lease.renew().await.unwrap();
    assert_eq!(lease.lease().attrs, at(2), "what was written is known now");

    cluster.delay(&node("n1"), Duration::from_secs(2));
    let acquired = tokio::time::timeout(Duration::from_millis(5500), store.acquire(&at(3))).await;
    assert!(acquired.is_err());
    cluster.heal(&node("n1"));
    let lease = store.acquire(&at(3)).await.unwrap();
    assert_eq!(lease.lease().subnet.to_string(), key);
    assert_eq!(cluster.records().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_lost_answers_in_a_row_cost_nothing() {
    let cluster = cluster();
    let mut lease = cluster.store(node("n1")).acquire(&at(1)).await.unwrap();
    for (attrs, written) in [(at(2), at(2)), (at(3), at(2))] {
        // The first one is written, the second one does not get that far.
        cluster.delay(&node("n1"), Duration::from_secs(2));
        let patience = Duration::from_millis(if attrs == written { 1500 } else { 500 });
        let published = tokio::time::timeout(patience, lease.publish(&attrs)).await;
        assert!(published.is_err());
        assert_eq!(cluster.records()[0].value, Ok(written.to_string()));
    }
    cluster.heal(&node("n1"));
    lease.publish(&at(4)).await.unwrap();
    assert_eq!(cluster.records()[0].value, Ok(at(4).to_string()));
    lease.publish(&at(1)).await.unwrap();
    lease.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_used_when_nothing_better_is_known() {
    let cluster = cluster();
    let hint = Some("10.3.200.0-24".parse().unwrap());
    let options = LeaseOptions { hint, ..short() };
    let lease = cluster.store_with(node("n1"), options).acquire(&at(1)).await.unwrap();
    assert_eq!(Some(lease.lease().subnet), hint);
    let other = cluster.store_with(node("n2"), options).acquire(&at(2)).await.unwrap();
    assert_ne!(Some(other.lease().subnet), hint);
    let other = cluster.store_with(node("n2"), options).previous().await.unwrap();
    assert_ne!(other.map(|lease| lease.subnet), hint);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_lease_gets_the_same_subnet_again() {
    let cluster = cluster();
    let store = cluster.store_with(node("n1"), short());
    // Another node sits where this node's search begins, so that it cannot come out there by chance.
    let start = cluster.store(node("n1")).acquire(&at(1)).await.unwrap();
    let taken = start.lease().subnet.to_string();
    start.release().await.unwrap();
    cluster.put(&taken, &by_hand(&at(9).to_string()));
    let subnet = store.acquire(&at(1)).await.unwrap().lease().subnet;
    cluster.remove(&taken);
    assert!(cluster.expire(&subnet.to_string()));
    assert_eq!(store.acquire(&at(1)).await.unwrap().lease().subnet, subnet);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_fit_the_network_any_more_is_replaced() {
    let cluster = cluster();
    let store = cluster.store(node("n1"));
    store.acquire(&at(1)).await.unwrap();
    cluster.set_config(Some(r#"{"Network":"10.4.0.0/16"}"#));
    let lease = store.acquire(&at(1)).await.unwrap();
    assert!(lease.lease().subnet.to_string().starts_with("10.4."));
    assert_eq!(cluster.records().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn skipped_entries_are_counted() {
    let cluster = cluster();
    cluster.put("foo", &by_hand("x"));
    let store = cluster.store(node("n1"));
    let mut watch = store.watch();
    item(&mut watch).await.unwrap();
    cluster.put("10.3.7.0-24", &by_hand("x"));
    let subnet = "10.3.7.0-24".parse().unwrap();
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet), "nobody has it");
    assert_eq!(store.stats().skipped, 2);
}

#[tokio::test(start_paused = true)]
async fn attributes_that_nobody_could_read_are_not_published() {
    let cluster = cluster();
    let store = cluster.store(node("n1"));
    let huge =
        LeaseAttrs { backend_type: "x".repeat(flannel_core::MAX_LEASE_BYTES).into(), ..at(1) };
    let error = store.acquire(&huge).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert!(cluster.records().is_empty());
}
