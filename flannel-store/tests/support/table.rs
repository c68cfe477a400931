//! An engine such as an embedder writes: a table that cannot be followed, only listed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use flannel_store::{
    Change, ConfigText, Lifetime, NewRecord, Record, Registry, RegistryError, Snapshot,
};
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::Instant;

#[derive(Clone, Debug, Default)]
pub(crate) struct Table(pub(crate) Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) config: Option<String>,
    pub(crate) records: BTreeMap<String, Record>,
    pub(crate) revision: u64,
    /// When records go away.
    pub(crate) deadlines: BTreeMap<String, Instant>,
    pub(crate) watches: Arc<()>,
    /// How often all of it was asked for.
    pub(crate) lists: u32,
    /// It compares one key and no addresses when it creates, as etcd and Consul do.
    pub(crate) compares_keys: bool,
}

impl Rows {
    pub(crate) fn put(&mut self, key: &str, write: &NewRecord) -> Record {
        self.revision += 1;
        self.lasts(key, write.ttl);
        let record = Record {
            key: key.into(),
            value: Ok(write.value.clone()),
            owner: write.owner.clone(),
            revision: self.revision,
            created: self.records.get(key).map_or(self.revision, |record| record.created),
            lifetime: write.ttl.map_or(Lifetime::Unbounded, |_| Lifetime::Bounded),
            token: 0,
        };
        self.records.insert(key.into(), record.clone());
        record
    }

    fn lasts(&mut self, key: &str, ttl: Option<Duration>) {
        self.deadlines.remove(key);
        self.deadlines.extend(ttl.map(|ttl| (key.into(), Instant::now() + ttl)));
    }

    /// `DELETE ... WHERE expires < now()`.
    fn sweep(&mut self) {
        let now = Instant::now();
        self.deadlines.retain(|key, deadline| {
            let lasts = *deadline > now || !self.records.contains_key(key);
            if !lasts {
                self.records.remove(key);
            }
            *deadline > now
        });
    }

    pub(crate) fn compare(&self, key: &str, revision: Option<u64>) -> Result<(), RegistryError> {
        let current = self.records.get(key);
        if current.map(|record| record.revision) == revision {
            return Ok(());
        }
        Err(RegistryError::Conflict { current: current.cloned().map(Box::new) })
    }

    pub(crate) fn list(&self) -> Snapshot {
        Snapshot { records: self.records.values().cloned().collect(), revision: self.revision }
    }
}

impl Table {
    /// A query takes a moment.
    async fn query<T>(&self, work: impl FnOnce(&mut Rows) -> T) -> T {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut rows = self.0.lock().unwrap();
        rows.sweep();
        work(&mut rows)
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
        let conflict =
            |other: &Record| RegistryError::Conflict { current: Some(other.clone().into()) };
        let create = |rows: &mut Rows| {
            rows.compare(key, None)?;
            let other = rows.records.values().find(|record| record.overlaps(key));
            match other.filter(|_| !rows.compares_keys) {
                None => Ok((rows.put(key, write), rows.compares_keys)),
                Some(other) => Err(conflict(other)),
            }
        };
        let (record, compares_keys) = self.query(create).await?;
        if !compares_keys {
            return Ok(record);
        }
        let older = |other: &&Record| other.overlaps(key) && other.created < record.created;
        match self.query(|rows| rows.records.values().find(older).cloned()).await {
            None => Ok(record),
            Some(other) => {
                self.delete(&record).await?;
                Err(conflict(&other))
            }
        }
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        let update = |rows: &mut Rows| {
            rows.compare(&was.key, Some(was.revision))?;
            Ok(rows.put(&was.key, write))
        };
        self.query(update).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        let touch = |rows: &mut Rows| {
            rows.compare(&was.key, Some(was.revision))?;
            rows.lasts(&was.key, ttl);
            Ok(was.clone())
        };
        self.query(touch).await
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
