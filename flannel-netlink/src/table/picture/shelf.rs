use crate::{
    dense::DenseMap,
    packed::{KEY_BYTES, NARROW_KEY, NARROW_REST, PackedKey, PackedRest, REST_BYTES},
};

/// An entry for each of many keys, in little memory: those without IPv6, which are nearly all in most clusters, take
/// 40 bytes.
#[derive(Debug, Default)]
pub(super) struct Shelves {
    narrow: DenseMap<PackedKey<NARROW_KEY>, Slot<NARROW_REST>>,
    wide: DenseMap<PackedKey<KEY_BYTES>, Slot<REST_BYTES>>,
}

#[derive(Debug)]
struct Slot<const N: usize> {
    want: Want<N>,
    state: State,
}

/// What is wanted under a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Want<const N: usize = REST_BYTES> {
    /// Nothing, and the kernel holds just this.
    Left(PackedRest<N>),
    Nothing,
    /// Something that has no room here.
    Odd,
    Packed(PackedRest<N>),
}

/// What else is known of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) actual: Actual,
    /// The attempt at a listing that this was found in last.
    pub(super) listed: u16,
    /// The number of whom it is wanted for.
    pub(super) whom: u32,
}

/// What the kernel holds under a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Actual {
    /// Just what is wanted.
    Fits,
    /// Just what [`Want::Left`] says.
    Left,
    Missing,
    /// Something that has no room here.
    Other,
}

impl Shelves {
    pub(super) fn get(&self, key: &PackedKey) -> Option<(Want, State)> {
        let narrow = key.resized().and_then(|key| self.narrow.get(&key));
        match narrow {
            Some(slot) => Some((slot.want.widened(), slot.state)),
            None => self.wide.get(key).map(|slot| (slot.want, slot.state)),
        }
    }

    pub(super) fn get_mut(&mut self, key: &PackedKey) -> Option<(Want, &mut State)> {
        let narrow = key.resized().and_then(|key| self.narrow.get_mut(&key));
        match narrow {
            Some(slot) => Some((slot.want.widened(), &mut slot.state)),
            None => self.wide.get_mut(key).map(|slot| (slot.want, &mut slot.state)),
        }
    }

    pub(super) fn insert(&mut self, key: PackedKey, want: Want, state: State) {
        let narrow_key = key.resized();
        if let (Some(key), Some(want)) = (narrow_key, want.narrowed()) {
            self.narrow.insert(key, Slot { want, state });
            self.wide.remove(&key.resized().expect("it was narrowed"));
        } else {
            self.wide.insert(key, Slot { want, state });
            narrow_key.and_then(|key| self.narrow.remove(&key));
        }
    }

    /// What is there; where nothing is, `want` is from now on.
    pub(super) fn get_or_insert(
        &mut self,
        key: PackedKey,
        want: Want,
        state: State,
    ) -> Option<(Want, &mut State)> {
        if let (Some(narrow_key), Some(narrow)) = (key.resized(), want.narrowed())
            && self.wide.get(&key).is_none()
        {
            let slot = self.narrow.get_or_insert(narrow_key, Slot { want: narrow, state })?;
            return Some((slot.want.widened(), &mut slot.state));
        }
        if self.get(&key).is_none() {
            self.insert(key, want, state);
            return None;
        }
        self.get_mut(&key)
    }

    /// Where the kernel holds just what is wanted, nothing is wanted any more; returns that. Changes no others.
    pub(super) fn leave(&mut self, key: &PackedKey) -> Option<PackedRest> {
        let narrow = key.resized().and_then(|key| self.narrow.get_mut(&key));
        match narrow {
            Some(slot) => slot.leave()?.resized(),
            None => self.wide.get_mut(key)?.leave(),
        }
    }

    pub(super) fn remove(&mut self, key: &PackedKey) {
        let narrow = key.resized().and_then(|key| self.narrow.remove(&key));
        if narrow.is_none() {
            self.wide.remove(key);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PackedKey, Want, State)> {
        let wide = self.wide.iter().map(|(key, slot)| (*key, slot.want, slot.state));
        let narrow = self.narrow.iter().map(|(key, slot)| {
            (key.resized().expect("it was narrowed"), slot.want.widened(), slot.state)
        });
        narrow.chain(wide)
    }

    /// All from `key` on, in the order of their keys.
    pub(super) fn iter_from(
        &self,
        key: PackedKey,
    ) -> impl Iterator<Item = (PackedKey, Want, State)> {
        let wide = self.wide.iter_from(key).map(|(key, slot)| (*key, slot.want, slot.state));
        let narrow = self.narrow.iter_from(key.cut()).map(|(key, slot)| {
            (key.resized().expect("it was narrowed"), slot.want.widened(), slot.state)
        });
        // What is cut off may tell the first from `key`.
        let mut narrow = narrow.skip_while(move |(narrow, ..)| *narrow < key).peekable();
        let mut wide = wide.peekable();
        std::iter::from_fn(move || match (narrow.peek(), wide.peek()) {
            (Some((narrow, ..)), Some((key, ..))) if key < narrow => wide.next(),
            (None, _) => wide.next(),
            _ => narrow.next(),
        })
    }

    /// Lets `change` look at each entry, and keeps those for which it returns true.
    pub(super) fn retain(&mut self, mut change: impl FnMut(PackedKey, Want, &mut State) -> bool) {
        self.narrow.retain(|key, slot| {
            let key = key.resized().expect("it was narrowed");
            change(key, slot.want.widened(), &mut slot.state)
        });
        self.wide.retain(|key, slot| change(*key, slot.want, &mut slot.state));
    }
}

impl<const N: usize> Slot<N> {
    fn leave(&mut self) -> Option<PackedRest<N>> {
        match self.want {
            Want::Packed(rest) if self.state.actual == Actual::Fits => {
                self.want = Want::Left(rest);
                self.state = State { actual: Actual::Left, whom: 0, ..self.state };
                Some(rest)
            }
            _ => None,
        }
    }
}

impl State {
    pub(super) const EMPTY: Self = Self { actual: Actual::Missing, listed: 0, whom: 0 };
}

impl<const N: usize> Want<N> {
    pub(super) const fn is_something(&self) -> bool {
        matches!(self, Self::Odd | Self::Packed(_))
    }
}

impl Want {
    fn narrowed(&self) -> Option<Want<NARROW_REST>> {
        Some(match self {
            Self::Left(rest) => Want::Left(rest.resized()?),
            Self::Nothing => Want::Nothing,
            Self::Odd => Want::Odd,
            Self::Packed(rest) => Want::Packed(rest.resized()?),
        })
    }
}

impl Want<NARROW_REST> {
    fn widened(&self) -> Want {
        let wide = |rest: &PackedRest<_>| rest.resized().expect("there is more room");
        match self {
            Self::Left(rest) => Want::Left(wide(rest)),
            Self::Nothing => Want::Nothing,
            Self::Odd => Want::Odd,
            Self::Packed(rest) => Want::Packed(wide(rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::state::testing::object;

    #[test]
    fn an_entry_without_ipv6_is_small() {
        assert_eq!(size_of::<(PackedKey<NARROW_KEY>, Slot<NARROW_REST>)>(), 40);
    }

    proptest! {
        /// Whatever moves between the two.
        #[test]
        fn shelves_are_one_map(
            steps in proptest::collection::vec((0usize..4, object(), 0u8..7), 0..60),
        ) {
            let (mut shelves, mut model) = (Shelves::default(), BTreeMap::new());
            let keys: Vec<_> = steps.iter().map(|(_, object, _)| PackedKey::of(&object.key())).collect();
            for (index, object, what) in steps {
                let key = keys[index.min(keys.len() - 1)];
                let Some(rest) = PackedRest::of(&object) else { continue };
                let want = [Want::Left(rest), Want::Nothing, Want::Odd, Want::Packed(rest)];
                match want.get(usize::from(what)) {
                    Some(want) => {
                        shelves.insert(key, *want, State { whom: 7, ..State::EMPTY });
                        model.insert(key, *want);
                    }
                    None if what == 4 => {
                        let state = State { whom: 7, ..State::EMPTY };
                        let there = shelves.get_or_insert(key, Want::Packed(rest), state);
                        prop_assert_eq!(there.map(|(want, _)| want), model.get(&key).copied());
                        model.entry(key).or_insert(Want::Packed(rest));
                    }
                    None => {
                        shelves.remove(&key);
                        model.remove(&key);
                    }
                }
                let behind: Vec<_> = shelves.iter_from(key).map(|(key, want, _)| (key, want)).collect();
                prop_assert_eq!(behind, model.range(key..).map(|(key, want)| (*key, *want)).collect::<Vec<_>>());
                prop_assert_eq!(shelves.get(&key).map(|(want, _)| want), model.get(&key).copied());
            }
            let all: BTreeMap<_, _> = shelves.iter().map(|(key, want, _)| (key, want)).collect();
            prop_assert_eq!((shelves.iter().count(), all), (model.len(), model.clone()));
            for (key, want) in &model {
                let (found, state) = shelves.get_mut(key).unwrap();
                prop_assert_eq!((found, state.whom), (*want, 7));
            }
            shelves.retain(|_, want, _| want.is_something());
            model.retain(|_, want| want.is_something());
            prop_assert_eq!(shelves.iter().count(), model.len());
        }
    }
}
