use std::collections::{BTreeMap, BTreeSet};

use super::shelf::{Actual, Shelves, State, Want};
use crate::{
    diff::Stage,
    packed::{PackedKey, PackedRest},
    state::{Key, Kind, Object},
};

/// What is wanted under each key, what the kernel holds there, and where the two differ.
///
/// A key where they are equal, which is nearly every one nearly always, takes one small entry and
/// nothing else.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: Shelves,
    dirty: Dirty,
    /// What is wanted where an entry has no room for it.
    odd: BTreeMap<PackedKey, Object>,
    /// In the kernel's order, never empty.
    others: BTreeMap<PackedKey, Vec<Object>>,
}

/// The keys whose entry does not fit.
#[derive(Debug)]
enum Dirty {
    Few(BTreeSet<PackedKey>),
    /// So many that looking at all entries costs less.
    Many,
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
    attempt: u16,
    /// All but what is alone under its key and as it is wanted.
    others: Vec<Object>,
    pub(super) foreign: usize,
    pub(super) read: usize,
}

impl Listed {
    pub(crate) const fn new(attempt: u16) -> Self {
        Self { attempt, others: Vec::new(), foreign: 0, read: 0 }
    }

    pub(super) fn push_other(&mut self, object: Object) {
        self.others.push(object);
    }
}

impl Entries {
    pub(super) fn wanted(&self, key: &Key) -> Option<Object> {
        self.wanted_for(key).map(|(_, object)| object)
    }

    pub(super) fn wanted_for(&self, key: &Key) -> Option<(u32, Object)> {
        let key = PackedKey::of(key);
        let (want, state) = self.entries.get(&key)?;
        Some((state.whom, self.object_of(&key, want)?))
    }

    pub(super) fn wanted_keys(&self) -> impl Iterator<Item = Key> {
        let wanted = self.entries.iter().filter(|(_, want, _)| want.is_something());
        wanted.map(|(key, ..)| key.key())
    }

    /// What is wanted under `key`, and what the kernel holds there in its order.
    pub(super) fn both(&self, key: &Key) -> (Option<Object>, Vec<Object>) {
        self.both_of(&PackedKey::of(key))
    }

    /// The keys of this kind from `from` on that there may be a step of this stage for, in order: with what is wanted there and
    /// what the kernel holds.
    pub(super) fn dirty(
        &self,
        stage: Stage,
        kind: Kind,
        from: PackedKey,
    ) -> impl Iterator<Item = (PackedKey, Option<Object>, Vec<Object>)> {
        let few = match &self.dirty {
            Dirty::Few(keys) => Some(keys.range(from..)),
            Dirty::Many => None,
        };
        let of_few = |key: &PackedKey| {
            let (want, state) = self.entries.get(key)?;
            Some((*key, want, state))
        };
        let all = few.is_none().then(|| self.entries.iter_from(from));
        let few = few.into_iter().flatten().filter_map(of_few);
        few.chain(all.into_iter().flatten())
            .take_while(move |(key, ..)| key.is_of(kind))
            .filter(move |(.., state)| match state.actual {
                Actual::Fits => false,
                Actual::Left => stage != Stage::Put,
                Actual::Missing => stage == Stage::Put,
                Actual::Other => true,
            })
            .map(|(key, want, state)| {
                let (wanted, found) = self.both_at(&key, want, state);
                (key, wanted, found)
            })
    }

    /// Keeps the keys that differ apart if they are few by now.
    pub(super) fn count_dirty(&mut self) {
        if let Dirty::Many = self.dirty {
            let dirty = || self.entries.iter().filter(|(.., state)| state.actual != Actual::Fits);
            if dirty().nth(MOST_DIRTY_KEYS).is_none() {
                self.dirty = Dirty::Few(dirty().map(|(key, ..)| key).collect());
            }
        }
    }

    pub(super) fn fits(&self, key: &Key) -> bool {
        match &self.dirty {
            Dirty::Few(keys) => keys.is_empty() || !keys.contains(&PackedKey::of(key)),
            Dirty::Many => {
                let entry = self.entries.get(&PackedKey::of(key));
                entry.is_none_or(|(_, state)| state.actual == Actual::Fits)
            }
        }
    }

    /// Puts `object` in the place of what is wanted under its key; returns that.
    pub(super) fn want(&mut self, object: Object, whom: u32) -> Option<Object> {
        let packed = PackedKey::of(&object.key());
        let kept = PackedRest::of(&object).map_or(Want::Odd, Want::Packed);
        if kept != Want::Odd {
            match self.entries.get_or_insert(packed, kept, State { whom, ..State::EMPTY }) {
                None => {
                    self.dirty.insert(packed);
                    return None;
                }
                Some((before, state)) if before == kept => {
                    state.whom = whom;
                    return Some(object);
                }
                Some(_) => {}
            }
        }
        let (before, found) = self.both_of(&packed);
        self.odd.remove(&packed);
        if kept == Want::Odd {
            self.odd.insert(packed, object);
        }
        self.set_at(packed, (kept, whom), found, Some(object));
        before
    }

    /// Wants nothing under `key` any more; returns what was wanted. Of what else the kernel holds there, what `is_owned` is kept.
    pub(super) fn forget(
        &mut self,
        key: &Key,
        is_owned: impl Fn(&Object) -> bool,
    ) -> Option<Object> {
        let packed = PackedKey::of(key);
        if let Some(rest) = self.entries.leave(&packed) {
            self.dirty.insert(packed);
            return Some(rest.object(&packed));
        }
        let (wanted, mut found) = self.both_of(&packed);
        let wanted = wanted?;
        if found != [wanted] {
            found.retain(is_owned);
        }
        self.odd.remove(&packed);
        self.set_at(packed, (Want::Nothing, 0), found, None);
        Some(wanted)
    }

    /// The kernel holds exactly `found` under `key`, in this order.
    pub(super) fn set_found(&mut self, key: &Key, found: Vec<Object>) {
        let packed = PackedKey::of(key);
        let (want, state) = self.entries.get(&packed).unwrap_or((Want::Nothing, State::EMPTY));
        let object = self.object_of(&packed, want);
        self.set_at(packed, (want, state.whom), found, object);
    }

    /// The kernel has `object` now, in the place of the first with the same key or not. Returns
    /// what it was known to hold there before; of a key without an entry nothing is kept.
    pub(super) fn added(&mut self, object: Object, replaces: bool) -> Held {
        let packed = PackedKey::of(&object.key());
        let Some((want, state)) = self.entries.get_mut(&packed) else {
            return Held::Unknown;
        };
        let held = match state.actual {
            Actual::Missing => Held::Nothing,
            Actual::Fits | Actual::Left | Actual::Other => Held::Something,
        };
        // The usual case: what we want, where nothing was or the same.
        if matches!(state.actual, Actual::Fits | Actual::Missing) && is_exactly(want, &object) {
            if state.actual == Actual::Missing {
                state.actual = Actual::Fits;
                self.dirty.remove(&packed);
            }
            return held;
        }
        let (_, mut found) = self.both_of(&packed);
        if !matches!(object, Object::Route(_)) || found.is_empty() {
            found = vec![object];
        } else if replaces {
            let behind = found.split_off(1).into_iter().filter(|it| *it != object);
            found = std::iter::once(object).chain(behind).collect();
        } else if !found.contains(&object) {
            // Appended behind or put in front: either way it does not belong there.
            found.push(object);
        }
        self.set_found(&object.key(), found);
        held
    }

    /// The kernel no longer has `object`; false if it was not known to have it while it has others
    /// under the same key.
    pub(super) fn removed(&mut self, object: &Object) -> bool {
        let packed = PackedKey::of(&object.key());
        let Some((want, state)) = self.entries.get_mut(&packed) else {
            return true;
        };
        if state.actual == Actual::Fits && is_exactly(want, object) {
            state.actual = Actual::Missing;
            self.dirty.insert(packed);
            return true;
        }
        if state.actual == Actual::Left && is_left(want, object) {
            self.entries.remove(&packed);
            self.dirty.remove(&packed);
            return true;
        }
        let (_, mut found) = self.both_of(&packed);
        let before = found.len();
        if matches!(object, Object::Route(_)) {
            found.retain(|it| it != object);
        } else {
            found.clear();
        }
        let known = before == 0 || found.len() < before;
        self.set_found(&object.key(), found);
        known
    }

    /// Before the kernel is listed.
    pub(super) fn begin_listing(&mut self) {
        self.entries.retain(|_, _, state| {
            state.listed = 0;
            true
        });
    }

    /// Takes in one object of a listing; false if nothing is wanted under its key.
    pub(super) fn list(&mut self, listed: &mut Listed, object: Object) -> bool {
        let packed = PackedKey::of(&object.key());
        let entry = self.entries.get_mut(&packed).filter(|(want, _)| want.is_something());
        let Some((want, state)) = entry else {
            return false;
        };
        let (alone, among_others) = (listed.attempt * 2, listed.attempt * 2 + 1);
        let was = state.listed;
        if was != alone && was != among_others && is_exactly(want, &object) {
            state.listed = alone;
            return true;
        }
        state.listed = among_others;
        if was == alone {
            listed.others.extend(self.object_of(&packed, want));
        }
        listed.others.push(object);
        true
    }

    /// After the kernel was listed: it holds what `parts` say and nothing else. Returns the keys
    /// that fitted before and do not any more.
    pub(super) fn end_listing(&mut self, parts: Vec<Listed>) -> Vec<Key> {
        let alone: BTreeSet<u16> = parts.iter().map(|part| part.attempt * 2).collect();
        let mut others: BTreeMap<PackedKey, Vec<Object>> = BTreeMap::new();
        for object in parts.into_iter().flat_map(|part| part.others) {
            others.entry(PackedKey::of(&object.key())).or_default().push(object);
        }
        let mut lost = Vec::new();
        self.entries.retain(|key, want, state| {
            let fitted = state.actual == Actual::Fits;
            state.actual =
                if alone.contains(&state.listed) { Actual::Fits } else { Actual::Missing };
            if fitted && state.actual != Actual::Fits {
                lost.push(key);
            }
            want.is_something()
        });
        self.others.clear();
        self.dirty = Dirty::Many;
        for (key, found) in others {
            self.set_found(&key.key(), found);
        }
        let differs = |key: &PackedKey| {
            self.entries.get(key).is_some_and(|(_, state)| state.actual != Actual::Fits)
        };
        lost.retain(differs);
        lost.iter().map(PackedKey::key).collect()
    }

    fn both_of(&self, key: &PackedKey) -> (Option<Object>, Vec<Object>) {
        let entry = self.entries.get(key);
        entry.map_or((None, Vec::new()), |(want, state)| self.both_at(key, want, state))
    }

    fn both_at(&self, key: &PackedKey, want: Want, state: State) -> (Option<Object>, Vec<Object>) {
        let object = self.object_of(key, want);
        let found = match (state.actual, want) {
            (Actual::Fits, _) => object.into_iter().collect(),
            (Actual::Left, Want::Left(rest)) => vec![rest.object(key)],
            (Actual::Left | Actual::Missing, _) => Vec::new(),
            (Actual::Other, _) => self.others.get(key).cloned().unwrap_or_default(),
        };
        (object, found)
    }

    fn object_of(&self, key: &PackedKey, want: Want) -> Option<Object> {
        match want {
            Want::Left(_) | Want::Nothing => None,
            Want::Odd => self.odd.get(key).copied(),
            Want::Packed(rest) => Some(rest.object(key)),
        }
    }

    /// Stores what is wanted and found under a key, and what follows from it. `object` is what `want` stands for.
    fn set_at(
        &mut self,
        key: PackedKey,
        (mut want, whom): (Want, u32),
        found: Vec<Object>,
        object: Option<Object>,
    ) {
        self.others.remove(&key);
        if object.is_none() && found.is_empty() {
            self.entries.remove(&key);
            self.dirty.remove(&key);
            return;
        }
        let left = match (&object, &found[..]) {
            (None, [only]) => PackedRest::of(only),
            _ => None,
        };
        if object.is_none() {
            want = left.map_or(Want::Nothing, Want::Left);
        }
        let actual = match (&object, &found[..]) {
            (_, []) => Actual::Missing,
            (Some(wanted), [only]) if wanted.fits(only) => Actual::Fits,
            (None, [_]) if left.is_some() => Actual::Left,
            _ => {
                self.others.insert(key, found);
                Actual::Other
            }
        };
        let listed = self.entries.get(&key).map_or(0, |(_, state)| state.listed);
        self.entries.insert(key, want, State { actual, listed, whom });
        if actual == Actual::Fits {
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

/// Whether `object` is what is wanted. May say no where only the flags differ that the kernel sets, or where the want is odd.
fn is_exactly(want: Want, object: &Object) -> bool {
    PackedRest::of(object).is_some_and(|rest| want == Want::Packed(rest))
}

/// The same of what was wanted before.
fn is_left(want: Want, object: &Object) -> bool {
    PackedRest::of(object).is_some_and(|rest| want == Want::Left(rest))
}

/// As many keys that differ are kept apart from their entries; a set of all of them would take half as much memory as all entries.
const MOST_DIRTY_KEYS: usize = 256;
