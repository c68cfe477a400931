use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::value::Value;
use crate::{
    diff::Stage,
    packed_map::PackedMap,
    state::{Key, Kind, Object},
};

/// What is wanted under each key, what the kernel holds there, and where the two differ.
///
/// Where they are equal, which is nearly every key nearly always, an entry has no allocation of its own.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: PackedMap<Key, Entry>,
    differing: Differing,
    /// The objects of entries that have no [`Value`].
    unusual: BTreeMap<Key, Object>,
    /// What the kernel holds where it is [`Held::Other`], in the kernel's order.
    others: BTreeMap<Key, Vec<Object>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// What is wanted; and if nothing is, what was wanted or found last.
    value: Option<Value>,
    tag: u32,
    /// The attempt at a listing in which this was found last.
    listed: u16,
    wanted: bool,
    held: Held,
}

/// What the kernel holds under a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Held {
    Nothing,
    /// Exactly the entry's object.
    Same,
    Other,
}

/// The keys under which the kernel does not hold what is wanted.
#[derive(Debug)]
enum Differing {
    Few(BTreeSet<Key>),
    /// So many that looking at all entries costs less.
    Many,
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

impl Entry {
    const fn fits(&self) -> bool {
        match self.held {
            Held::Nothing => !self.wanted,
            Held::Same => self.wanted,
            Held::Other => false,
        }
    }

    /// Whether there may be a step of this stage.
    fn concerns(&self, stage: Stage) -> bool {
        match self.held {
            Held::Nothing => self.wanted && stage == Stage::Put,
            Held::Same => !self.wanted && stage != Stage::Put,
            Held::Other => true,
        }
    }
}

impl Entries {
    pub(super) fn wanted(&self, key: &Key) -> Option<Object> {
        self.wanted_tagged(key).map(|(_, object)| object)
    }

    pub(super) fn wanted_tagged(&self, key: &Key) -> Option<(u32, Object)> {
        let entry = self.entries.get(key).filter(|entry| entry.wanted)?;
        Some((entry.tag, self.object(key, entry)?))
    }

    /// The wanted route to just `destination` with the lowest metric.
    pub(super) fn wanted_route(&self, destination: IpNetwork, table: u32) -> Option<Key> {
        let is_there =
            |key: &Key| matches!(key, Key::Route(to, at, _) if (*to, *at) == (destination, table));
        let from = self.entries.iter_from(Key::Route(destination, table, 0));
        let mut there = from.take_while(|(key, _)| is_there(key));
        there.find(|(_, entry)| entry.wanted).map(|(key, _)| *key)
    }

    pub(super) fn wanted_tags(&self) -> impl Iterator<Item = (u32, Key)> {
        self.entries.iter().filter(|(_, entry)| entry.wanted).map(|(key, entry)| (entry.tag, *key))
    }

    /// What is wanted under `key`, and what the kernel holds there in its order.
    pub(super) fn both(&self, key: &Key) -> (Option<Object>, Vec<Object>) {
        self.entries.get(key).map_or((None, Vec::new()), |entry| self.both_of(key, entry))
    }

    /// The keys of this kind from `from` on that there may be a step of this stage for, in order: with what is wanted there and
    /// what the kernel holds.
    pub(super) fn differing(
        &self,
        stage: Stage,
        kind: Kind,
        from: Key,
    ) -> impl Iterator<Item = (Key, Option<Object>, Vec<Object>)> {
        let few = match &self.differing {
            Differing::Few(keys) => Some(keys.range(from..)),
            Differing::Many => None,
        };
        let all = few.is_none().then(|| self.entries.iter_from(from));
        let few = few.into_iter().flatten();
        few.filter_map(|key| Some((key, self.entries.get(key)?)))
            .chain(all.into_iter().flatten())
            .take_while(move |(key, _)| key.kind() == kind)
            .filter(move |(_, entry)| entry.concerns(stage))
            .map(|(key, entry)| {
                let (wanted, held) = self.both_of(key, entry);
                (*key, wanted, held)
            })
    }

    /// Collects the keys that differ if they are few by now.
    pub(super) fn count_differing(&mut self) {
        if let Differing::Many = self.differing {
            let differing = || self.entries.iter().filter(|(_, entry)| !entry.fits());
            if differing().nth(MOST_DIFFERING).is_none() {
                self.differing = Differing::Few(differing().map(|(key, _)| *key).collect());
            }
        }
    }

    pub(super) fn fits(&self, key: &Key) -> bool {
        match &self.differing {
            Differing::Few(keys) => !keys.contains(key),
            Differing::Many => self.entries.get(key).is_none_or(Entry::fits),
        }
    }

    /// Wants `object` in the place of what is wanted under its key, which is returned.
    pub(super) fn want(&mut self, object: Object, tag: u32) -> Option<Object> {
        let (key, value) = (object.key(), Value::of(&object));
        let fresh = Entry { value, tag, listed: 0, wanted: true, held: Held::Nothing };
        if value.is_some() {
            match self.entries.get_or_insert(key, fresh) {
                None => {
                    self.differing.insert(key);
                    return None;
                }
                Some(entry) if entry.wanted && entry.value == value => {
                    entry.tag = tag;
                    return Some(object);
                }
                Some(_) => {}
            }
        }
        let (before, held) = self.both(&key);
        self.set(key, Some((tag, object)), held);
        before
    }

    /// Wants nothing under `key` any more; returns what was wanted. Of what else the kernel holds there, what `is_owned` is kept.
    pub(super) fn forget(
        &mut self,
        key: &Key,
        is_owned: impl Fn(&Object) -> bool,
    ) -> Option<Object> {
        let (wanted, mut held) = self.both(key);
        let wanted = wanted?;
        if held != [wanted] {
            held.retain(is_owned);
        }
        self.set(*key, None, held);
        Some(wanted)
    }

    /// Where nothing is wanted, only what `is_owned` is kept of what the kernel holds.
    pub(super) fn disown(&mut self, key: &Key, is_owned: impl Fn(&Object) -> bool) {
        if self.wanted(key).is_none() {
            let held = self.both(key).1.into_iter().filter(is_owned).collect();
            self.set_held(key, held);
        }
    }

    /// The kernel holds exactly `held` under `key`, in this order.
    pub(super) fn set_held(&mut self, key: &Key, held: Vec<Object>) {
        self.set(*key, self.wanted_tagged(key), held);
    }

    /// The kernel has `object` now, in the place of the first with the same key or not. Returns whether it was known to hold something there
    /// before: `Some(true)` for anything. Of a key without an entry (`None`) nothing is kept.
    pub(super) fn added(&mut self, object: Object, replaces: bool) -> Option<bool> {
        let key = object.key();
        let entry = self.entries.get_mut(&key)?;
        let before = Some(entry.held != Held::Nothing);
        // The usual case: what is wanted, where nothing was or the same.
        if entry.wanted && entry.held != Held::Other && is_exactly(entry, &object) {
            entry.held = Held::Same;
            self.differing.remove(&key);
            return before;
        }
        let (_, mut held) = self.both(&key);
        if !matches!(object, Object::Route(_)) || held.is_empty() {
            held = vec![object];
        } else if replaces {
            let behind = held.split_off(1).into_iter().filter(|it| *it != object);
            held = std::iter::once(object).chain(behind).collect();
        } else if !held.contains(&object) {
            // Appended behind or put in front: either way it does not belong there.
            held.push(object);
        }
        self.set_held(&key, held);
        before
    }

    /// The kernel no longer has `object`; false if it was not known to have it while it has others under the same key.
    pub(super) fn removed(&mut self, object: &Object) -> bool {
        let key = object.key();
        let Some(entry) = self.entries.get_mut(&key) else {
            return true;
        };
        if entry.held == Held::Same && is_exactly(entry, object) {
            entry.held = Held::Nothing;
            if entry.wanted {
                self.differing.insert(key);
            } else {
                self.entries.remove(&key);
                self.differing.remove(&key);
            }
            return true;
        }
        let (_, mut held) = self.both(&key);
        let before = held.len();
        if matches!(object, Object::Route(_)) {
            held.retain(|it| it != object);
        } else {
            held.clear();
        }
        let known = before == 0 || held.len() < before;
        self.set_held(&key, held);
        known
    }

    /// Before the kernel is listed.
    pub(super) fn begin_listing(&mut self) {
        self.entries.retain(|_, entry| {
            entry.listed = 0;
            true
        });
    }

    /// Takes in one object of a listing; false if nothing is wanted under its key.
    pub(super) fn list(&mut self, listed: &mut Listed, object: Object) -> bool {
        let key = object.key();
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.wanted) else {
            return false;
        };
        let (alone, among_others) = (listed.attempt * 2, listed.attempt * 2 + 1);
        let was = entry.listed;
        if was != alone && was != among_others && is_exactly(entry, &object) {
            entry.listed = alone;
            return true;
        }
        entry.listed = among_others;
        if was == alone {
            listed.others.extend(self.wanted(&key));
        }
        listed.others.push(object);
        true
    }

    /// After the kernel was listed: it holds what `parts` say and nothing else. Returns the keys that fitted before and do not
    /// any more.
    pub(super) fn end_listing(&mut self, parts: Vec<Listed>) -> Vec<Key> {
        let alone: BTreeSet<u16> = parts.iter().map(|part| part.attempt * 2).collect();
        let mut others: BTreeMap<Key, Vec<Object>> = BTreeMap::new();
        for object in parts.into_iter().flat_map(|part| part.others) {
            others.entry(object.key()).or_default().push(object);
        }
        let mut lost = Vec::new();
        self.entries.retain(|key, entry| {
            let fitted = entry.wanted && entry.held == Held::Same;
            entry.held = if alone.contains(&entry.listed) { Held::Same } else { Held::Nothing };
            if fitted && entry.held != Held::Same {
                lost.push(*key);
            }
            entry.wanted
        });
        self.unusual.retain(|key, _| self.entries.get(key).is_some());
        self.others.clear();
        self.differing = Differing::Many;
        for (key, held) in others {
            self.set_held(&key, held);
        }
        lost.retain(|key| !self.fits(key));
        lost
    }

    fn both_of(&self, key: &Key, entry: &Entry) -> (Option<Object>, Vec<Object>) {
        let object = self.object(key, entry);
        let held = match entry.held {
            Held::Nothing => Vec::new(),
            Held::Same => object.into_iter().collect(),
            Held::Other => self.others.get(key).cloned().unwrap_or_default(),
        };
        (object.filter(|_| entry.wanted), held)
    }

    fn object(&self, key: &Key, entry: &Entry) -> Option<Object> {
        match entry.value {
            Some(value) => value.object(key),
            None => self.unusual.get(key).copied(),
        }
    }

    /// Stores what is wanted and held under a key, and what follows from it.
    fn set(&mut self, key: Key, wanted: Option<(u32, Object)>, held: Vec<Object>) {
        self.others.remove(&key);
        self.unusual.remove(&key);
        let object = wanted.map(|(_, object)| object).or_else(|| held.first().copied());
        let Some(object) = object else {
            self.entries.remove(&key);
            self.differing.remove(&key);
            return;
        };
        let value = Value::of(&object);
        if value.is_none() {
            self.unusual.insert(key, object);
        }
        let state = match &held[..] {
            [] => Held::Nothing,
            [only] if object.fits(only) => Held::Same,
            _ => {
                self.others.insert(key, held);
                Held::Other
            }
        };
        let listed = self.entries.get(&key).map_or(0, |entry| entry.listed);
        let tag = wanted.map_or(0, |(tag, _)| tag);
        let entry = Entry { value, tag, listed, wanted: wanted.is_some(), held: state };
        self.entries.insert(key, entry);
        if entry.fits() {
            self.differing.remove(&key);
        } else {
            self.differing.insert(key);
        }
    }
}

impl Default for Differing {
    fn default() -> Self {
        Self::Few(BTreeSet::new())
    }
}

impl Differing {
    fn insert(&mut self, key: Key) {
        if let Self::Few(keys) = self {
            keys.insert(key);
            if keys.len() > MOST_DIFFERING {
                *self = Self::Many;
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Self::Few(keys) = self {
            keys.remove(key);
        }
    }
}

/// Whether `object` is the entry's. May say no where only flags differ that the kernel sets, or where the object is unusual.
fn is_exactly(entry: &Entry, object: &Object) -> bool {
    entry.value.is_some() && entry.value == Value::of(object)
}

/// As many keys that differ are kept apart from their entries; a set of all of them would take half as much memory as all entries.
const MOST_DIFFERING: usize = 256;
