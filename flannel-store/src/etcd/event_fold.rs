//! From etcd's events to changes of records.

use flannel_core::NodeId;

use crate::{
    etcd::{
        keys::{Keys, Place},
        lease_txn,
        proto::Event,
    },
    registry::Change,
};

/// Puts owners and leases together.
#[derive(Debug, Default)]
pub(super) struct Fold {
    /// The last owner that was written, with its key and revision. Its lease is the next thing written.
    owner: Option<(Vec<u8>, i64, NodeId)>,
}

impl Fold {
    /// What an event says of a lease.
    pub(super) fn change(&mut self, keys: &Keys, event: Event) -> Option<Change> {
        let kv = event.kv?;
        let key = kv.key.clone();
        match (keys.place(&key), event.kind) {
            (Place::Lease(key), Event::DELETE) => {
                Some(Change::Delete(String::from_utf8_lossy(key).into()))
            }
            (Place::Lease(key), Event::PUT) => {
                let revision = kv.mod_revision;
                let mut record = lease_txn::record(key, kv);
                let owner = self.owner.take();
                let owner = owner.filter(|(owned, at, _)| owned == key && *at == revision);
                record.owner = owner.map(|(.., node)| node);
                Some(Change::Put(record))
            }
            (Place::Owner(key), Event::PUT) => {
                self.owner =
                    lease_txn::owner(&kv).map(|node| (key.to_vec(), kv.mod_revision, node));
                None
            }
            // An owner that goes alone had lost its lease before.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::etcd::proto::KeyValue;

    fn event(kind: i32, key: Vec<u8>, value: &str, mod_revision: i64) -> Event {
        Event {
            kind,
            kv: Some(KeyValue {
                key,
                create_revision: 1,
                mod_revision,
                value: value.into(),
                lease: 7,
            }),
        }
    }

    /// One thing that somebody does to a key.
    #[derive(Clone, Debug)]
    enum Deed {
        /// A node of ours writes, with its owner or without.
        Ours(Option<String>),
        /// flannel writes.
        Flannels,
        /// The key goes, and its owner with it.
        Goes,
        /// Somebody writes an owner alone.
        Owner,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            proptest::option::of("n[1-3]").prop_map(Deed::Ours),
            Just(Deed::Flannels),
            Just(Deed::Goes),
            Just(Deed::Owner),
        ]
    }

    proptest! {
        #[test]
        fn a_watcher_knows_the_owners_that_a_list_would_have(
            deeds in proptest::collection::vec(("[ab]", deed()), 0..20),
        ) {
            let keys = Keys::new("/x");
            let (mut fold, mut seen, mut stored) = (Fold::default(), BTreeMap::new(), BTreeMap::new());
            for (revision, (key, deed)) in (1..).zip(deeds) {
                let (lease, owner) = (keys.lease(&key), keys.owner(&key));
                let events = match &deed {
                    Deed::Ours(Some(node)) => vec![
                        event(Event::PUT, owner, node, revision),
                        event(Event::PUT, lease, "{}", revision),
                    ],
                    Deed::Ours(None) => vec![
                        event(Event::DELETE, owner, "", revision),
                        event(Event::PUT, lease, "{}", revision),
                    ],
                    Deed::Flannels => vec![event(Event::PUT, lease, "{}", revision)],
                    Deed::Goes => vec![
                        event(Event::DELETE, owner, "", revision),
                        event(Event::DELETE, lease, "", revision),
                    ],
                    Deed::Owner => vec![event(Event::PUT, owner, "n9", revision)],
                };
                match deed {
                    Deed::Ours(node) => drop(stored.insert(key, node)),
                    Deed::Flannels => drop(stored.insert(key, None)),
                    Deed::Goes => drop(stored.remove(&key)),
                    Deed::Owner => {}
                }
                // As if each event came in a fragment of its own.
                for event in events {
                    match fold.change(&keys, event) {
                        Some(Change::Put(record)) => {
                            prop_assert_eq!(record.revision, revision.unsigned_abs());
                            seen.insert(record.key, record.owner.map(String::from));
                        }
                        Some(Change::Delete(key)) => drop(seen.remove(&key)),
                        None => {}
                    }
                }
                prop_assert_eq!(&seen, &stored);
            }
        }

        #[test]
        fn no_event_panics(
            key in proptest::collection::vec(any::<u8>(), 0..20),
            prefix in "(/x/subnets/|/x/subnet-owners/|)",
            value in proptest::collection::vec(any::<u8>(), 0..20),
            numbers in any::<(i32, i64, i64)>(),
        ) {
            let (kind, mod_revision, lease) = numbers;
            let key = [prefix.as_bytes(), &key].concat();
            let kv = Some(KeyValue { key, create_revision: 1, mod_revision, value, lease });
            let mut fold = Fold::default();
            for kind in [kind, Event::PUT, Event::DELETE] {
                fold.change(&Keys::new("/x"), Event { kind, kv: kv.clone() });
            }
            let nothing = fold.change(&Keys::new("/x"), Event { kind, kv: None });
            prop_assert_eq!(nothing, None);
        }
    }
}
