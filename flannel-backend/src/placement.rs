//! Which peer wants which object: pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::{PeerFault, Subnet};
use flannel_netlink::state::{Key, Object};

/// What one peer needs in the kernel, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerPlan {
    /// The objects that lead to the peer. Routes name their gateway themselves.
    pub objects: Vec<Object>,
    /// Why the peer, or one of its families, is not served.
    pub faults: Vec<PeerFault>,
}

/// Who wants an object: a peer, or the node itself.
pub(crate) type Holder = Option<Subnet>;

/// What every holder wants. Holders may want the same key; the one with the lowest subnet gets its object.
///
/// There are thousands of holders with a few objects each, so none of them has a map of its own.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// In the order of the keys, one for each.
    wants: BTreeMap<Holder, Box<[Object]>>,
    holders: BTreeSet<(Key, Holder)>,
}

/// What a table has to be told after a holder changed its mind.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub(crate) forget: Vec<Key>,
    pub(crate) want: Vec<Object>,
}

impl Placement {
    /// `holder` wants exactly `objects` from now on.
    pub(crate) fn place(
        &mut self,
        holder: Holder,
        objects: impl IntoIterator<Item = Object>,
    ) -> Changes {
        let next: BTreeMap<Key, Object> =
            objects.into_iter().map(|object| (object.key(), object)).collect();
        let before = self.wants.remove(&holder).unwrap_or_default();
        let mut touched: BTreeSet<Key> = BTreeSet::new();
        for object in &before {
            let key = object.key();
            if next.get(&key) != Some(object) {
                touched.insert(key);
            }
            if !next.contains_key(&key) {
                self.holders.remove(&(key, holder));
            }
        }
        for (key, object) in &next {
            if find(&before, key) != Some(*object) {
                touched.insert(*key);
            }
            self.holders.insert((*key, holder));
        }
        if !next.is_empty() {
            self.wants.insert(holder, next.into_values().collect());
        }
        let mut changes = Changes::default();
        for key in touched {
            match self.object(&key) {
                Some(object) => changes.want.push(object),
                None => changes.forget.push(key),
            }
        }
        changes
    }

    /// All that want anything.
    pub(crate) fn holders(&self) -> impl Iterator<Item = Holder> {
        self.wants.keys().copied()
    }

    /// Who wants what is at `key`, the lowest first.
    pub(crate) fn holders_of(&self, key: &Key) -> impl Iterator<Item = Holder> {
        // Nobody is below None.
        let from = self.holders.range((*key, None)..);
        from.take_while(move |(other, _)| other == key).map(|(_, holder)| *holder)
    }

    fn object(&self, key: &Key) -> Option<Object> {
        let holder = self.holders_of(key).next()?;
        find(self.wants.get(&holder)?, key)
    }
}

fn find(objects: &[Object], key: &Key) -> Option<Object> {
    objects.iter().find(|object| object.key() == *key).copied()
}

#[cfg(test)]
mod tests {
    use flannel_netlink::state::Route;
    use proptest::prelude::*;

    use super::*;

    fn route(key: u8, gateway: u8) -> Object {
        let destination = format!("10.3.{key}.0/24").parse().unwrap();
        Route::new(destination, 99).via_gateway([192, 0, 2, gateway].into(), 7).into()
    }

    fn holder(n: u8) -> Holder {
        (n > 0).then(|| format!("10.3.{n}.0-24").parse().unwrap())
    }

    #[test]
    fn an_object_that_two_want_stays_until_both_let_go() {
        let mut placement = Placement::default();
        let first = placement.place(holder(1), [route(1, 1)]);
        assert_eq!(first, Changes { forget: vec![], want: vec![route(1, 1)] });
        placement.place(holder(2), [route(1, 2), route(2, 2)]);
        let changes = placement.place(holder(1), []);
        assert_eq!(changes, Changes { forget: vec![], want: vec![route(1, 2)] });
        let changes = placement.place(holder(2), []);
        assert_eq!(changes.forget, [route(1, 2).key(), route(2, 2).key()]);
        assert_eq!(placement.holders().count(), 0);
    }

    proptest! {
        /// Whoever does what the changes say has what the lowest holder of each key wants.
        #[test]
        fn following_the_changes_equals_looking_at_all_wants(
            steps in proptest::collection::vec(
                (0u8..5, proptest::collection::btree_map(0u8..6, 0u8..3, 0..4)), 0..40,
            ),
        ) {
            let mut placement = Placement::default();
            let mut table = BTreeMap::new();
            let mut model = BTreeMap::new();
            for (n, objects) in steps {
                let objects: Vec<_> = objects.into_iter().map(|(k, g)| route(k, g)).collect();
                let changes = placement.place(holder(n), objects.clone());
                for key in changes.forget {
                    prop_assert!(table.remove(&key).is_some());
                }
                for object in changes.want {
                    table.insert(object.key(), object);
                }
                model.insert(holder(n), objects);
                let mut expected = BTreeMap::new();
                for object in model.values().rev().flatten() {
                    expected.insert(object.key(), *object);
                }
                prop_assert_eq!(&table, &expected);
            }
        }
    }
}
