//! Which leases of others overlap our own, as the watch shows them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
};

use flannel_core::{NodeId, Subnet};

use crate::registry::{Change, Record, Snapshot};

/// What the watch tells the holder of a lease.
#[derive(Debug, Default)]
pub(crate) struct Overlaps(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    own: Option<Subnet>,
    others: BTreeSet<String>,
    reported: BTreeSet<String>,
}

impl Overlaps {
    /// Looks out for what overlaps `subnet` from now on: called before it is asked for, so that nothing is missed.
    pub(crate) fn look_out_for(&self, subnet: Option<Subnet>) {
        *self.lock() = State { own: subnet, ..State::default() };
    }

    pub(crate) fn listed(&self, snapshot: &Snapshot, node: &NodeId) {
        let mut state = self.lock();
        state.others.clear();
        snapshot.records.iter().for_each(|record| state.put(record, node));
    }

    pub(crate) fn changed(&self, change: &Change, node: &NodeId) {
        let mut state = self.lock();
        match change {
            Change::Delete(key) => drop(state.others.remove(key)),
            Change::Put(record) => state.put(record, node),
        }
    }

    pub(crate) fn any(&self) -> bool {
        !self.lock().others.is_empty()
    }

    /// Those that were not reported before.
    pub(crate) fn news(&self) -> Vec<String> {
        let mut state = self.lock();
        let news = state.others.difference(&state.reported).cloned().collect();
        state.reported = state.others.clone();
        news
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it is locked")
    }
}

impl State {
    fn put(&mut self, record: &Record, node: &NodeId) {
        let Some(own) = self.own else { return };
        let overlaps = record.subnet().is_some_and(|subnet| subnet != own && subnet.overlaps(&own));
        match overlaps && record.overlaps(&own.to_string()) && record.owner.as_ref() != Some(node) {
            true => drop(self.others.insert(record.key.clone())),
            false => drop(self.others.remove(&record.key)),
        }
    }
}
