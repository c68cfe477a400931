//! The contract of a store over an engine such as an embedder writes: a table that cannot be followed, only listed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use flannel_core::{
    LeaseAttrs, LeaseEvent, Store, StoreError,
    testing::{Entry, StoreFixture},
};
use flannel_store::{
    Change, ConfigText, LeaseOptions, Lifetime, NewRecord, Record, Registry, RegistryError,
    RegistryStore, Snapshot,
};
use futures::{StreamExt, stream, stream::BoxStream};

#[derive(Clone, Debug, Default)]
struct Table(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    config: Option<String>,
    records: BTreeMap<String, Record>,
    revision: u64,
    watches: Arc<()>,
    /// How often all of it was asked for.
    lists: u32,
}

impl Rows {
    /// Expiry is left out: a table would compare its clock with a column.
    fn put(&mut self, key: &str, write: &NewRecord) -> Record {
        self.revision += 1;
        let record = Record {
            key: key.into(),
            value: Ok(write.value.clone()),
            owner: write.owner.clone(),
            revision: self.revision,
            lifetime: write.ttl.map_or(Lifetime::Unbounded, |_| Lifetime::Bounded),
            token: 0,
        };
        self.records.insert(key.into(), record.clone());
        record
    }

    fn compare(&self, key: &str, revision: Option<u64>) -> Result<(), RegistryError> {
        let current = self.records.get(key);
        if current.map(|record| record.revision) == revision {
            return Ok(());
        }
        Err(RegistryError::Conflict { current: current.cloned().map(Box::new) })
    }

    fn list(&self) -> Snapshot {
        Snapshot { records: self.records.values().cloned().collect(), revision: self.revision }
    }
}

impl Table {
    /// A query takes a moment.
    async fn query<T>(&self, work: impl FnOnce(&mut Rows) -> T) -> T {
        tokio::time::sleep(Duration::from_millis(1)).await;
        work(&mut self.0.lock().unwrap())
    }
}

#[async_trait]
impl Registry for Table {
    async fn config(&self) -> Result<ConfigText, RegistryError> {
        let text = self.query(|rows| rows.config.clone()).await;
        Ok(ConfigText { place: "a table".into(), text })
    }

    async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
        let set = |rows: &mut Rows| {
            if rows.config != was.text {
                return Err(RegistryError::ConfigConflict);
            }
            rows.config = Some(text.into());
            Ok(())
        };
        self.query(set).await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        let list = |rows: &mut Rows| {
            rows.lists += 1;
            rows.list()
        };
        Ok(self.query(list).await)
    }

    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError> {
        let create = |rows: &mut Rows| {
            rows.compare(key, None)?;
            Ok(rows.put(key, write))
        };
        self.query(create).await
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        let update = |rows: &mut Rows| {
            rows.compare(&was.key, Some(was.revision))?;
            Ok(rows.put(&was.key, write))
        };
        self.query(update).await
    }

    async fn touch(&self, was: &Record, _: Option<Duration>) -> Result<Record, RegistryError> {
        let compare = |rows: &mut Rows| rows.compare(&was.key, Some(was.revision));
        self.query(compare).await.map(|()| was.clone())
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        let delete = |rows: &mut Rows| {
            rows.compare(&was.key, Some(was.revision))?;
            rows.records.remove(&was.key);
            Ok(())
        };
        self.query(delete).await
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        let open = Arc::clone(&self.0.lock().unwrap().watches);
        let state = (self.clone(), since, VecDeque::new(), open);
        let next =
            async |(table, mut last, mut changes, open): (Self, Snapshot, VecDeque<_>, _)| {
                while changes.is_empty() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let later = table.query(|rows| rows.list()).await;
                    changes.extend(last.changes_to(&later));
                    last = later;
                }
                let change = changes.pop_front()?;
                Some((Ok(change), (table, last, changes, open)))
            };
        stream::unfold(state, next).boxed()
    }
}

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

const PEER: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null}"#;

fn attrs() -> LeaseAttrs {
    r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#.parse().unwrap()
}

fn lists(table: &Table) -> u32 {
    table.0.lock().unwrap().lists
}

#[tokio::test(start_paused = true)]
async fn a_start_lists_once_and_misses_nothing() {
    let table = Table::build(r#"{"Network":"10.3.0.0/16"}"#).await;
    table.put("10.3.7.0-24", PEER).await;
    let store = StoreFixture::store(&table, "n1").await;
    assert_eq!(store.previous().await.unwrap(), None);
    table.put("10.3.8.0-24", PEER).await;
    let lease = store.acquire(&attrs()).await.unwrap();
    table.put("10.3.9.0-24", PEER).await;
    let mut events = store.watch();
    let Some(Ok(LeaseEvent::Reset(known))) = events.next().await else { panic!("no Reset") };
    assert!(known.contains(lease.lease()), "{known:?}");
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
    let table = Table::build(r#"{"Network":"10.3.0.0/28","SubnetLen":30}"#).await;
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
