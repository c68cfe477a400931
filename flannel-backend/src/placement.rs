//! Which peer wants which object: pure bookkeeping.

use std::collections::BTreeMap;

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

/// Who wants an object: a peer, or the node itself, which comes before all peers.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Holder(Option<Subnet>);

impl Holder {
    /// The node itself.
    pub(crate) const NODE: Self = Self(None);

    pub(crate) const fn peer(subnet: Subnet) -> Self {
        Self(Some(subnet))
    }

    /// The peer's subnet; `None` for the node itself.
    pub(crate) const fn subnet(&self) -> Option<Subnet> {
        self.0
    }
}

/// What every holder wants. Holders may want the same key; the one with the lowest subnet gets its object.
///
/// A table that was told of the changes has the objects of those who got theirs, and whose they are by number, so only the
/// others' are kept here.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// By number. Those that are free hold nothing.
    holders: Vec<Holder>,
    /// The numbers of all that hold something, in the order of the holders: four bytes each, which a tree would not do with.
    order: Vec<u32>,
    free: Vec<u32>,
    losers: BTreeMap<Key, BTreeMap<Holder, Object>>,
}

/// What a table has to be told after a holder changed its mind.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub(crate) forget: Vec<Key>,
    /// Each with its holder's number.
    pub(crate) want: Vec<(u32, Object)>,
}

impl Placement {
    /// `holder`, who wanted something at each of the keys `before`, wants exactly `objects` from now on. `placed` says what the table that
    /// follows the changes wants at a key, and the number of the holder.
    pub(crate) fn place(
        &mut self,
        holder: Holder,
        before: impl IntoIterator<Item = Key>,
        objects: impl IntoIterator<Item = Object>,
        placed: impl Fn(&Key) -> Option<(u32, Object)>,
    ) -> Changes {
        let mut next: Vec<_> = objects.into_iter().map(|object| (object.key(), object)).collect();
        next.sort_by_key(|(key, _)| *key);
        // Of several with one key the last.
        next.reverse();
        next.dedup_by_key(|(key, _)| *key);
        next.reverse();
        let mut changes = Changes::default();
        let place = self.find(holder);
        let number = match place {
            Ok(place) => self.order[place],
            Err(_) if next.is_empty() => return changes,
            Err(place) => {
                let number = self.number(holder);
                self.order.insert(place, number);
                number
            }
        };
        for key in before {
            if next.binary_search_by_key(&key, |(key, _)| *key).is_err() {
                self.release(holder, &key, &placed, &mut changes);
            }
        }
        for (key, object) in &next {
            self.claim((holder, number), key, *object, &placed, &mut changes);
        }
        if let (Ok(place), true) = (place, next.is_empty()) {
            self.order.remove(place);
            self.free.push(number);
        }
        changes
    }

    /// Where each of `holders` wants something, whether it gets it or not. `placed` are the keys that the table wants something at,
    /// with the numbers of those who got it: all of them are looked at, so many holders cost little more than one. To keep the keys
    /// of ten thousand peers takes a megabyte.
    pub(crate) fn keys_of(
        &self,
        holders: impl IntoIterator<Item = Holder>,
        placed: impl Iterator<Item = (u32, Key)>,
    ) -> BTreeMap<Holder, Vec<Key>> {
        let known =
            holders.into_iter().filter_map(|holder| Some((self.number_of(holder)?, vec![])));
        let mut keys: BTreeMap<u32, Vec<Key>> = known.collect();
        if !keys.is_empty() {
            for (number, key) in placed {
                keys.entry(number).and_modify(|keys| keys.push(key));
            }
            for (key, losers) in &self.losers {
                for number in losers.keys().filter_map(|loser| self.number_of(*loser)) {
                    keys.entry(number).and_modify(|keys| keys.push(*key));
                }
            }
        }
        keys.into_iter().map(|(number, keys)| (*self.holder(number), keys)).collect()
    }

    /// The number of a holder that wants something.
    pub(crate) fn number_of(&self, holder: Holder) -> Option<u32> {
        self.find(holder).ok().map(|place| self.order[place])
    }

    /// All that want anything.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.order.iter().map(|number| self.holder(*number))
    }

    /// Who wants what is at `key`, where the table has the object of the holder with the number `winner`.
    pub(crate) fn holders_of(
        &self,
        key: &Key,
        winner: Option<u32>,
    ) -> impl Iterator<Item = &Holder> {
        let losers = self.losers.get(key).into_iter().flat_map(BTreeMap::keys);
        winner.map(|number| self.holder(number)).into_iter().chain(losers)
    }

    /// Gives back memory that was needed to grow.
    pub(crate) fn close_gaps(&mut self) {
        self.holders.shrink_to_fit();
        self.order.shrink_to_fit();
    }

    fn find(&self, holder: Holder) -> Result<usize, usize> {
        self.order.binary_search_by_key(&holder, |number| *self.holder(*number))
    }

    fn holder(&self, number: u32) -> &Holder {
        &self.holders[number as usize]
    }

    fn number(&mut self, holder: Holder) -> u32 {
        if let Some(number) = self.free.pop() {
            self.holders[number as usize] = holder;
            return number;
        }
        self.holders.push(holder);
        u32::try_from(self.holders.len() - 1).expect("there are fewer subnets than numbers")
    }

    fn claim(
        &mut self,
        (holder, number): (Holder, u32),
        key: &Key,
        object: Object,
        placed: impl Fn(&Key) -> Option<(u32, Object)>,
        changes: &mut Changes,
    ) {
        if let Some((winner, there)) = placed(key) {
            let winner = *self.holder(winner);
            if winner == holder && there == object {
                return;
            }
            if winner < holder {
                self.losers.entry(*key).or_default().insert(holder, object);
                return;
            }
            if winner > holder {
                self.losers.entry(*key).or_default().insert(winner, there);
            }
        }
        changes.want.push((number, object));
    }

    fn release(
        &mut self,
        holder: Holder,
        key: &Key,
        placed: impl Fn(&Key) -> Option<(u32, Object)>,
        changes: &mut Changes,
    ) {
        let winner = placed(key).map(|(number, _)| *self.holder(number));
        let losers = self.losers.get_mut(key);
        if winner != Some(holder) {
            losers.and_then(|losers| losers.remove(&holder));
        } else if let Some((heir, object)) = losers.and_then(BTreeMap::pop_first) {
            let heir = self.number_of(heir).expect("who lost a key holds it all the same");
            changes.want.push((heir, object));
        } else {
            changes.forget.push(*key);
        }
        if self.losers.get(key).is_some_and(BTreeMap::is_empty) {
            self.losers.remove(key);
        }
    }
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
        match n {
            0 => Holder::NODE,
            n => Holder::peer(format!("10.3.{n}.0-24").parse().unwrap()),
        }
    }

    /// What a table wants that does what the changes say.
    #[derive(Default)]
    struct Table(BTreeMap<Key, (u32, Object)>);

    impl Table {
        fn place(&mut self, placement: &mut Placement, n: u8, objects: &[Object]) -> Changes {
            let keys = self.0.iter().map(|(key, (number, _))| (*number, *key));
            let before = placement.keys_of([holder(n)], keys).remove(&holder(n));
            let placed = |key: &Key| self.0.get(key).copied();
            let (before, objects) = (before.unwrap_or_default(), objects.iter().copied());
            let changes = placement.place(holder(n), before, objects, placed);
            for key in &changes.forget {
                assert!(self.0.remove(key).is_some(), "{key} was not wanted");
            }
            self.0.extend(changes.want.iter().map(|want| (want.1.key(), *want)));
            changes
        }

        fn objects(&self) -> BTreeMap<Key, Object> {
            self.0.iter().map(|(key, (_, object))| (*key, *object)).collect()
        }
    }

    #[test]
    fn an_object_that_two_want_stays_until_both_let_go() {
        let (mut placement, mut table) = (Placement::default(), Table::default());
        let first = table.place(&mut placement, 1, &[route(1, 1)]);
        assert_eq!(first, Changes { forget: vec![], want: vec![(0, route(1, 1))] });
        table.place(&mut placement, 2, &[route(1, 2), route(2, 2)]);
        let changes = table.place(&mut placement, 1, &[]);
        assert_eq!(changes, Changes { forget: vec![], want: vec![(1, route(1, 2))] });
        let changes = table.place(&mut placement, 2, &[]);
        assert_eq!(changes.forget, [route(1, 2).key(), route(2, 2).key()]);
        assert_eq!(placement.holders().count(), 0);
    }

    #[test]
    fn what_is_placed_again_changes_nothing() {
        let (mut placement, mut table) = (Placement::default(), Table::default());
        table.place(&mut placement, 1, &[route(1, 1), route(2, 1)]);
        let again = table.place(&mut placement, 1, &[route(1, 1), route(2, 1)]);
        assert_eq!(again, Changes::default());
    }

    proptest! {
        /// Whoever does what the changes say has what the lowest holder of each key wants.
        #[test]
        fn following_the_changes_equals_looking_at_all_wants(
            steps in proptest::collection::vec(
                (0u8..5, proptest::collection::btree_map(0u8..6, 0u8..3, 0..4)), 0..40,
            ),
        ) {
            let (mut placement, mut table) = (Placement::default(), Table::default());
            let mut model: BTreeMap<u8, Vec<Object>> = BTreeMap::new();
            for (n, objects) in steps {
                let objects: Vec<_> = objects.into_iter().map(|(k, g)| route(k, g)).collect();
                table.place(&mut placement, n, &objects);
                model.insert(n, objects);
                let mut expected = BTreeMap::new();
                for object in model.values().rev().flatten() {
                    expected.insert(object.key(), *object);
                }
                prop_assert_eq!(table.objects(), expected.clone());
                for key in expected.keys() {
                    let has = |objects: &Vec<Object>| objects.iter().any(|it| it.key() == *key);
                    let all = model.iter().filter(|(_, objects)| has(objects));
                    let all: Vec<_> = all.map(|(n, _)| holder(*n)).collect();
                    let winner = table.0.get(key).map(|(number, _)| *number);
                    let found = placement.holders_of(key, winner).copied();
                    prop_assert_eq!(found.collect::<Vec<_>>(), all);
                }
                let some = model.iter().filter(|(_, objects)| !objects.is_empty());
                let some: Vec<_> = some.map(|(n, _)| holder(*n)).collect();
                prop_assert_eq!(placement.holders().cloned().collect::<Vec<_>>(), some);
            }
        }
    }
}
