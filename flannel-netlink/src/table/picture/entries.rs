use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::packed::{PackedKey, PackedRest};
use crate::state::{Key, Object};

/// What is wanted under each key, what the kernel holds there, and where the two differ.
///
/// A key where they are equal, which is nearly every one nearly always, takes one small entry and
/// nothing else.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: BTreeMap<PackedKey, Entry>,
    dirty: Dirty,
    /// What is wanted where an entry has no room for it.
    odd: BTreeMap<PackedKey, Object>,
    /// In the kernel's order, never empty.
    others: BTreeMap<PackedKey, Vec<Object>>,
}

#[derive(Debug)]
struct Entry {
    want: Want,
    actual: Actual,
    /// The attempt at a listing that this was found in last.
    listed: u32,
    /// The number of whom it is wanted for.
    whom: u32,
}

/// The keys whose entry does not fit.
#[derive(Debug)]
enum Dirty {
    Few(BTreeSet<PackedKey>),
    /// So many that looking at all entries costs less.
    Many,
}

#[derive(Clone, Copy, Debug)]
enum Want {
    /// Nothing, and the kernel holds just this.
    Left(PackedRest),
    Nothing,
    /// Look at [`Entries::odd`].
    Odd,
    Packed(PackedRest),
}

/// What the kernel holds under a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Actual {
    /// Just what is wanted.
    Fits,
    /// Just what [`Want::Left`] says.
    Left,
    Missing,
    /// Look at [`Entries::others`].
    Other,
}

/// What the kernel was known to hold under a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Held {
    Nothing,
    Something,
    /// We do not look there.
    Unknown,
}

/// What one attempt to list a part of the kernel's objects found.
#[derive(Debug)]
pub(crate) struct Listed {
    attempt: u32,
    /// All but what is alone under its key and as it is wanted.
    others: Vec<Object>,
    pub(super) foreign: usize,
    pub(super) read: usize,
}

impl Listed {
    pub(crate) const fn new(attempt: u32) -> Self {
        Self { attempt, others: Vec::new(), foreign: 0, read: 0 }
    }

    pub(super) fn push_other(&mut self, object: Object) {
        self.others.push(object);
    }
}

impl Entries {
    pub(super) fn wanted(&self, key: &Key) -> Option<Object> {
        let key = PackedKey::of(key);
        self.want_of(&key, self.entries.get(&key)?)
    }

    pub(super) fn wanted_for(&self, key: &Key) -> Option<(u32, Object)> {
        let key = PackedKey::of(key);
        let entry = self.entries.get(&key)?;
        Some((entry.whom, self.want_of(&key, entry)?))
    }

    pub(super) fn wanted_keys(&self) -> impl Iterator<Item = Key> {
        let wanted = self.entries.iter().filter(|(_, entry)| entry.is_wanted());
        wanted.map(|(key, _)| key.key())
    }

    /// What is wanted under `key`, and what the kernel holds there in its order.
    pub(super) fn both(&self, key: &Key) -> (Option<Object>, Vec<Object>) {
        let key = PackedKey::of(key);
        match self.entries.get(&key) {
            Some(entry) => (self.want_of(&key, entry), self.found_of(&key, entry)),
            None => (None, Vec::new()),
        }
    }

    pub(super) fn dirty(&mut self) -> Vec<Key> {
        if let Dirty::Many = self.dirty {
            let dirty = self.entries.iter().filter(|(_, entry)| entry.actual != Actual::Fits);
            let keys: Vec<PackedKey> = dirty.map(|(key, _)| *key).collect();
            if keys.len() > MOST_DIRTY_KEYS {
                return keys.iter().map(PackedKey::key).collect();
            }
            self.dirty = Dirty::Few(keys.into_iter().collect());
        }
        match &self.dirty {
            Dirty::Few(keys) => keys.iter().map(PackedKey::key).collect(),
            Dirty::Many => Vec::new(),
        }
    }

    pub(super) fn fits(&self, key: &Key) -> bool {
        match &self.dirty {
            Dirty::Few(keys) => keys.is_empty() || !keys.contains(&PackedKey::of(key)),
            Dirty::Many => {
                let entry = self.entries.get(&PackedKey::of(key));
                entry.is_none_or(|entry| entry.actual == Actual::Fits)
            }
        }
    }

    /// Puts `want` in the place of what is wanted under `key`; returns that.
    pub(super) fn replace_want(
        &mut self,
        key: &Key,
        want: Option<Object>,
        whom: u32,
    ) -> Option<Object> {
        let packed = PackedKey::of(key);
        let rest = want.as_ref().and_then(PackedRest::of);
        match (self.entries.entry(packed), rest) {
            (btree_map::Entry::Vacant(place), Some(rest)) => {
                place.insert(Entry { want: Want::Packed(rest), whom, ..Entry::EMPTY });
                self.dirty.insert(packed);
                return None;
            }
            (btree_map::Entry::Occupied(mut entry), Some(rest)) if entry.get().wants(&rest) => {
                entry.get_mut().whom = whom;
                return want;
            }
            (btree_map::Entry::Vacant(_), None) if want.is_none() => return None,
            (entry, _) => {
                entry.or_insert(Entry::EMPTY);
            }
        }
        let (before, found) = self.both(key);
        self.odd.remove(&packed);
        let kept = match (want, rest) {
            (None, _) => Want::Nothing,
            (Some(_), Some(rest)) => Want::Packed(rest),
            (Some(want), None) => {
                self.odd.insert(packed, want);
                Want::Odd
            }
        };
        if let Some(entry) = self.entries.get_mut(&packed) {
            (entry.want, entry.whom) = (kept, whom);
        }
        self.set_at(packed, found, want);
        before
    }

    /// The kernel holds exactly `found` under `key`, in this order.
    pub(super) fn set_found(&mut self, key: &Key, found: Vec<Object>) {
        let packed = PackedKey::of(key);
        let entry = self.entries.get(&packed);
        let want = entry.and_then(|entry| self.want_of(&packed, entry));
        self.set_at(packed, found, want);
    }

    /// The kernel has `object` now, in the place of the first with the same key or not. Returns
    /// what it was known to hold there before; of a key without an entry nothing is kept.
    pub(super) fn added(&mut self, object: Object, replaces: bool) -> Held {
        let packed = PackedKey::of(&object.key());
        let Some(entry) = self.entries.get_mut(&packed) else {
            return Held::Unknown;
        };
        let held = match entry.actual {
            Actual::Missing => Held::Nothing,
            Actual::Fits | Actual::Left | Actual::Other => Held::Something,
        };
        // The usual case: what we want, where nothing was or the same.
        if matches!(entry.actual, Actual::Fits | Actual::Missing) && entry.wants_exactly(&object) {
            if entry.actual == Actual::Missing {
                entry.actual = Actual::Fits;
                self.dirty.remove(&packed);
            }
            return held;
        }
        let entry = &self.entries[&packed];
        let (want, mut found) = (self.want_of(&packed, entry), self.found_of(&packed, entry));
        if !matches!(object, Object::Route(_)) || found.is_empty() {
            found = vec![object];
        } else if replaces {
            let behind = found.split_off(1).into_iter().filter(|it| *it != object);
            found = std::iter::once(object).chain(behind).collect();
        } else if !found.contains(&object) {
            // Appended behind or put in front: either way it does not belong there.
            found.push(object);
        }
        self.set_at(packed, found, want);
        held
    }

    /// The kernel no longer has `object`; false if it was not known to have it while it has others
    /// under the same key.
    pub(super) fn removed(&mut self, object: &Object) -> bool {
        let packed = PackedKey::of(&object.key());
        let Some(entry) = self.entries.get_mut(&packed) else {
            return true;
        };
        if entry.actual == Actual::Fits && entry.wants_exactly(object) {
            entry.actual = Actual::Missing;
            self.dirty.insert(packed);
            return true;
        }
        let entry = &self.entries[&packed];
        let (want, mut found) = (self.want_of(&packed, entry), self.found_of(&packed, entry));
        let before = found.len();
        if matches!(object, Object::Route(_)) {
            found.retain(|it| it != object);
        } else {
            found.clear();
        }
        let known = before == 0 || found.len() < before;
        self.set_at(packed, found, want);
        known
    }

    /// Before the kernel is listed.
    pub(super) fn begin_listing(&mut self) {
        for entry in self.entries.values_mut() {
            entry.listed = 0;
        }
    }

    /// Takes in one object of a listing; false if nothing is wanted under its key.
    pub(super) fn list(&mut self, listed: &mut Listed, object: Object) -> bool {
        let packed = PackedKey::of(&object.key());
        let Some(entry) = self.entries.get_mut(&packed).filter(|entry| entry.is_wanted()) else {
            return false;
        };
        let (alone, among_others) = (listed.attempt * 2, listed.attempt * 2 + 1);
        let was = entry.listed;
        if was != alone && was != among_others && entry.wants_exactly(&object) {
            entry.listed = alone;
            return true;
        }
        entry.listed = among_others;
        if was == alone {
            let want = entry.want;
            listed.others.extend(self.object_of(&packed, want));
        }
        listed.others.push(object);
        true
    }

    /// After the kernel was listed: it holds what `parts` say and nothing else. Returns the keys
    /// that fitted before and do not any more.
    pub(super) fn end_listing(&mut self, parts: Vec<Listed>) -> Vec<Key> {
        let alone: BTreeSet<u32> = parts.iter().map(|part| part.attempt * 2).collect();
        let mut others: BTreeMap<PackedKey, Vec<Object>> = BTreeMap::new();
        for object in parts.into_iter().flat_map(|part| part.others) {
            others.entry(PackedKey::of(&object.key())).or_default().push(object);
        }
        let (mut lost, mut gone) = (Vec::new(), Vec::new());
        for (key, entry) in &mut self.entries {
            let fitted = entry.actual == Actual::Fits;
            entry.actual =
                if alone.contains(&entry.listed) { Actual::Fits } else { Actual::Missing };
            if fitted && entry.actual != Actual::Fits {
                lost.push(*key);
            }
            if !entry.is_wanted() {
                gone.push(*key);
            }
        }
        for key in gone {
            self.entries.remove(&key);
        }
        self.others.clear();
        self.dirty = Dirty::Many;
        for (key, found) in others {
            self.set_found(&key.key(), found);
        }
        let differs =
            |key: &PackedKey| self.entries.get(key).is_some_and(|it| it.actual != Actual::Fits);
        lost.retain(differs);
        lost.iter().map(PackedKey::key).collect()
    }

    fn want_of(&self, key: &PackedKey, entry: &Entry) -> Option<Object> {
        self.object_of(key, entry.want)
    }

    fn object_of(&self, key: &PackedKey, want: Want) -> Option<Object> {
        match want {
            Want::Left(_) | Want::Nothing => None,
            Want::Odd => self.odd.get(key).copied(),
            Want::Packed(rest) => Some(rest.object(key)),
        }
    }

    fn found_of(&self, key: &PackedKey, entry: &Entry) -> Vec<Object> {
        match (entry.actual, entry.want) {
            (Actual::Fits, _) => self.want_of(key, entry).into_iter().collect(),
            (Actual::Left, Want::Left(rest)) => vec![rest.object(key)],
            (Actual::Left | Actual::Missing, _) => Vec::new(),
            (Actual::Other, _) => self.others.get(key).cloned().unwrap_or_default(),
        }
    }

    /// Stores what is found under a key that has an entry, and what follows from it.
    fn set_at(&mut self, key: PackedKey, found: Vec<Object>, want: Option<Object>) {
        self.others.remove(&key);
        if want.is_none() && found.is_empty() {
            self.entries.remove(&key);
            self.dirty.remove(&key);
            return;
        }
        let entry = self.entries.entry(key).or_insert(Entry::EMPTY);
        let left = match (&want, &found[..]) {
            (None, [only]) => PackedRest::of(only),
            _ => None,
        };
        if want.is_none() {
            entry.want = left.map_or(Want::Nothing, Want::Left);
        }
        entry.actual = match (&want, &found[..]) {
            (_, []) => Actual::Missing,
            (Some(want), [only]) if want.fits(only) => Actual::Fits,
            (None, [_]) if left.is_some() => Actual::Left,
            _ => {
                self.others.insert(key, found);
                Actual::Other
            }
        };
        if entry.actual == Actual::Fits {
            self.dirty.remove(&key);
        } else {
            self.dirty.insert(key);
        }
    }
}

impl Default for Dirty {
    fn default() -> Self {
        Self::Few(BTreeSet::new())
    }
}

impl Dirty {
    fn insert(&mut self, key: PackedKey) {
        if let Self::Few(keys) = self {
            keys.insert(key);
            if keys.len() > MOST_DIRTY_KEYS {
                *self = Self::Many;
            }
        }
    }

    fn remove(&mut self, key: &PackedKey) {
        if let Self::Few(keys) = self {
            keys.remove(key);
        }
    }
}

impl Entry {
    const EMPTY: Self = Self { want: Want::Nothing, actual: Actual::Missing, listed: 0, whom: 0 };

    const fn is_wanted(&self) -> bool {
        matches!(self.want, Want::Odd | Want::Packed(_))
    }

    /// Whether `object` is what is wanted here. May say no where only the flags differ that the
    /// kernel sets, or where the want is odd.
    fn wants_exactly(&self, object: &Object) -> bool {
        PackedRest::of(object).is_some_and(|rest| self.wants(&rest))
    }

    fn wants(&self, rest: &PackedRest) -> bool {
        matches!(&self.want, Want::Packed(want) if want == rest)
    }
}

/// As many keys that differ are kept apart from their entries; a set of all of them would take half as much memory as all entries.
const MOST_DIRTY_KEYS: usize = 256;
