//! All records at one moment, and what changed between two.

use std::collections::BTreeMap;

use crate::registry::{Lifetime, Record};

/// All records of a network at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// Each record once, in any order.
    pub records: Vec<Record>,
    /// The moment: everything that was written up to this revision is in, nothing later is.
    pub revision: u64,
}

/// What happened to one record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The record at this key was deleted, or its time is over.
    Delete(String),
    /// The record was created or replaced.
    Put(Record),
}

impl Snapshot {
    /// What happened from this snapshot to a later one: for engines that can list and not follow.
    ///
    /// Deletions come first, then writes in the order of their revisions.
    pub fn changes_to(&self, later: &Self) -> Vec<Change> {
        let (mut before, after) = (self.live(), later.live());
        let mut puts: Vec<&Record> = after
            .into_values()
            .filter(|record| {
                before.remove(record.key.as_str()).is_none_or(|old| !old.looks_like(record))
            })
            .collect();
        puts.sort_by_key(|record| record.revision);
        let deletes = before.into_keys().map(|key| Change::Delete(key.into()));
        deletes.chain(puts.into_iter().cloned().map(Change::Put)).collect()
    }

    fn live(&self) -> BTreeMap<&str, &Record> {
        let live = self.records.iter().filter(|record| record.lifetime != Lifetime::Lapsed);
        live.map(|record| (record.key.as_str(), record)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let lifetime =
            prop_oneof![Just(Lifetime::Bounded), Just(Lifetime::Lapsed), Just(Lifetime::Unbounded)];
        let record = ("[a-f]", "[xy]", 0u64..3, lifetime);
        proptest::collection::btree_map("[a-f]", record, 0..6).prop_map(|map| {
            let record = |(key, (_, value, revision, lifetime)): (
                String,
                (String, String, u64, Lifetime),
            )| Record {
                key,
                value: Ok(value),
                owner: None,
                revision,
                created: revision,
                lifetime,
                token: 0,
            };
            map.into_iter().map(record).collect()
        })
    }

    /// What watchers can tell apart.
    fn visible(records: &[Record]) -> BTreeMap<String, (Result<String, String>, u64)> {
        let live = records.iter().filter(|record| record.lifetime != Lifetime::Lapsed);
        live.map(|record| (record.key.clone(), (record.value.clone(), record.revision))).collect()
    }

    proptest! {
        #[test]
        fn changes_lead_from_one_snapshot_to_the_other(before in records(), after in records()) {
            let before = Snapshot { records: before, revision: 1 };
            let after = Snapshot { records: after, revision: 2 };
            let mut model = visible(&before.records);
            for change in before.changes_to(&after) {
                match change {
                    Change::Delete(key) => prop_assert!(model.remove(&key).is_some(), "invented"),
                    Change::Put(record) => {
                        let new = (record.value, record.revision);
                        prop_assert_ne!(model.insert(record.key, new.clone()), Some(new), "invented");
                    }
                }
            }
            prop_assert_eq!(model, visible(&after.records));
            prop_assert!(after.changes_to(&after).is_empty());
        }
    }
}
