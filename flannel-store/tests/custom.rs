//! The contract of a store over an engine such as an embedder writes.

use std::{collections::BTreeMap, sync::Arc};

use flannel_core::{
    LeaseAttrs, LeaseEvent, Store, StoreError,
    testing::{Entry, StoreFixture},
};
use flannel_store::{
    LeaseOptions, Lifetime, NewRecord, Record, Registry, RegistryStore, testing::RegistryFixture,
};
use futures::StreamExt;

use table::Table;

#[path = "support/table.rs"]
mod table;

impl StoreFixture for Table {
    async fn build(config: &str) -> Self {
        let table = Self::default();
        StoreFixture::set_config(&table, Some(config)).await;
        table
    }

    async fn store(&self, node: &str) -> Arc<dyn Store> {
        let node = node.parse().unwrap();
        Arc::new(RegistryStore::new(self.clone(), node, LeaseOptions::default()))
    }

    async fn put(&self, key: &str, value: &str) {
        let write = NewRecord { value: value.into(), owner: None, ttl: None };
        self.0.lock().unwrap().put(key, &write);
    }

    async fn remove(&self, key: &str) {
        self.0.lock().unwrap().records.remove(key);
    }

    async fn entries(&self) -> BTreeMap<String, Entry> {
        let entry = |record: Record| Entry {
            value: record.value.unwrap(),
            expires: record.lifetime == Lifetime::Bounded,
        };
        let records = self.0.lock().unwrap().list().records.into_iter();
        records.map(|record| (record.key.clone(), entry(record))).collect()
    }

    async fn set_config(&self, config: Option<&str>) {
        self.0.lock().unwrap().config = config.map(Into::into);
    }

    /// A watcher that compares lists cannot fall behind.
    async fn outrun(&self) {}

    async fn open_watches(&self) -> usize {
        Arc::strong_count(&self.0.lock().unwrap().watches) - 1
    }
}

flannel_core::store_conformance!(Table);

impl RegistryFixture for Table {
    async fn build(config: &str) -> Self {
        <Self as StoreFixture>::build(config).await
    }

    async fn registry(&self, _node: &str) -> impl Registry {
        self.clone()
    }
}

mod registry {
    flannel_store::registry_conformance!(super::Table);
}

const PEER: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null}"#;

fn attrs() -> LeaseAttrs {
    r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#.parse().unwrap()
}

fn lists(table: &Table) -> u32 {
    table.0.lock().unwrap().lists
}

#[tokio::test(start_paused = true)]
async fn a_start_lists_once_and_misses_nothing() {
    let table = <Table as StoreFixture>::build(r#"{"Network":"10.3.0.0/16"}"#).await;
    table.put("10.3.7.0-24", PEER).await;
    let store = StoreFixture::store(&table, "n1").await;
    assert_eq!(store.previous().await.unwrap(), None);
    table.put("10.3.8.0-24", PEER).await;
    let lease = store.acquire(&attrs()).await.unwrap();
    table.put("10.3.9.0-24", PEER).await;
    let mut events = store.watch();
    let Some(Ok(LeaseEvent::Reset(known))) = events.next().await else { panic!("no Reset") };
    assert!(known.iter().any(|it| **it == *lease.lease()), "{known:?}");
    let mut later = Vec::new();
    for _ in 0..2 {
        let Some(Ok(LeaseEvent::Upsert(lease))) = events.next().await else { panic!("no Upsert") };
        later.push(lease.subnet.to_string());
    }
    assert_eq!(later, ["10.3.8.0-24", "10.3.9.0-24"]);
    assert_eq!(lists(&table), 1);
    let mut second = store.watch();
    let Some(Ok(LeaseEvent::Reset(all))) = second.next().await else { panic!("no Reset") };
    assert_eq!((all.len(), lists(&table)), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn what_changed_since_the_list_is_seen_when_it_is_written() {
    let table = <Table as StoreFixture>::build(r#"{"Network":"10.3.0.0/28","SubnetLen":30}"#).await;
    let store = StoreFixture::store(&table, "n1").await;
    table.put("10.3.0.8-30", PEER).await;
    table.put("10.3.0.12-30", PEER).await;
    // One is left, the first one of all being left out.
    store.previous().await.unwrap();
    table.put("10.3.0.4-30", PEER).await;
    let taken = store.acquire(&attrs()).await.unwrap_err();
    assert!(matches!(taken, StoreError::Full { .. }), "{taken}");
    store.previous().await.unwrap();
    table.remove("10.3.0.4-30").await;
    let lease = store.acquire(&attrs()).await.unwrap();
    assert_eq!(lease.lease().subnet.to_string(), "10.3.0.4-30");
}
