//! The data behind a cluster in memory: records, their deadlines, and the last changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::Instant;

use crate::registry::{Change, Lifetime, NewRecord, Record, RegistryError};

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Option<String>,
    entries: BTreeMap<String, Entry>,
    deadlines: BTreeSet<(Instant, String)>,
    pub(super) revision: u64,
    /// The last changes with their revisions, oldest first.
    history: VecDeque<(u64, Change)>,
    remembered: usize,
    pub(super) watches: usize,
    /// Whether somebody who waits may want to look.
    pub(super) changed: bool,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    expires: Option<Instant>,
}

impl State {
    pub(super) fn new(config: String, remembered: usize) -> Self {
        Self {
            config: Some(config),
            entries: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            revision: 0,
            history: VecDeque::new(),
            remembered,
            watches: 0,
            changed: false,
        }
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.entries.values().map(|entry| entry.record.clone()).collect()
    }

    /// Removes everything whose time is over.
    pub(super) fn sweep(&mut self) {
        let now = Instant::now();
        while let Some((deadline, key)) = self.deadlines.first() {
            if *deadline > now {
                break;
            }
            let key = key.clone();
            self.remove(&key);
        }
    }

    /// When the next record's time will be over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// What is at `key`, if it is still `was`.
    pub(super) fn compare(&self, key: &str, was: Option<&Record>) -> Result<(), RegistryError> {
        let current = self.entries.get(key).map(|entry| &entry.record);
        if current.map(|record| record.revision) == was.map(|record| record.revision) {
            return Ok(());
        }
        Err(RegistryError::Conflict { current: current.cloned().map(Box::new) })
    }

    /// Whether no record shares an address with `key`.
    pub(super) fn is_free(&self, key: &str) -> Result<(), RegistryError> {
        let mut records = self.entries.values().map(|entry| &entry.record);
        match records.find(|record| record.overlaps(key)) {
            None => Ok(()),
            Some(other) => Err(RegistryError::Conflict { current: Some(other.clone().into()) }),
        }
    }

    pub(super) fn write(&mut self, key: &str, write: &NewRecord) -> Record {
        self.forget_deadline(key);
        self.revision += 1;
        let expires = write.ttl.map(|ttl| Instant::now() + ttl);
        let lifetime = match expires {
            None => Lifetime::Unbounded,
            Some(_) => Lifetime::Bounded,
        };
        let before = self.entries.get(key).map(|entry| entry.record.created);
        let record = Record {
            key: key.into(),
            value: Ok(write.value.clone()),
            owner: write.owner.clone(),
            revision: self.revision,
            created: before.unwrap_or(self.revision),
            lifetime,
            token: 0,
        };
        self.deadlines.extend(expires.map(|deadline| (deadline, key.into())));
        let entry = Entry { record: record.clone(), expires };
        self.entries.insert(key.into(), entry);
        self.remember(Change::Put(record.clone()));
        record
    }

    pub(super) fn touch(&mut self, key: &str, deadline: Instant) {
        self.forget_deadline(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.expires = Some(deadline);
            self.deadlines.insert((deadline, key.into()));
        }
    }

    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.forget_deadline(key);
        let removed = self.entries.remove(key).is_some();
        if removed {
            self.revision += 1;
            self.remember(Change::Delete(key.into()));
        }
        removed
    }

    #[cfg(feature = "testing")]
    pub(super) fn expire(&mut self, key: &str) -> bool {
        let expires = self.entries.get(key).is_some_and(|entry| entry.expires.is_some());
        expires && self.remove(key)
    }

    /// The first change after revision `seen`, with its own revision.
    pub(super) fn change_after(&self, seen: u64) -> Result<Option<(u64, Change)>, RegistryError> {
        let next = self.history.partition_point(|(revision, _)| *revision <= seen);
        match self.history.get(next) {
            // Every revision is one change, so that a missing one shows.
            Some((revision, _)) if *revision == seen + 1 => Ok(self.history.get(next).cloned()),
            None if self.revision == seen => Ok(None),
            _ => Err(RegistryError::Compacted { revision: seen }),
        }
    }

    #[cfg(feature = "testing")]
    pub(super) fn compact(&mut self) {
        self.history.clear();
    }

    fn remember(&mut self, change: Change) {
        self.changed = true;
        self.history.push_back((self.revision, change));
        while self.history.len() > self.remembered {
            self.history.pop_front();
        }
    }

    fn forget_deadline(&mut self, key: &str) {
        if let Some(deadline) = self.entries.get_mut(key).and_then(|entry| entry.expires.take()) {
            self.deadlines.remove(&(deadline, key.into()));
        }
    }
}
