//! A sorted map that grows without leaving gaps.

/// A sorted map for ten thousands of small entries, most of which come in the order of their keys, in several runs. A tree of
/// the standard library is half empty then, and one that is built anew leaves the holes of the old one in the heap.
#[derive(Debug)]
pub(crate) struct PackedMap<K, V> {
    /// Each has at least one entry and at most [`CHUNK`], and they follow each other.
    chunks: Vec<Vec<(K, V)>>,
    /// The first key of each chunk. Beside each other they are searched in a part of the time.
    firsts: Vec<K>,
}

impl<K, V> Default for PackedMap<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), firsts: Vec::new() }
    }
}

impl<K: Copy + Ord, V> PackedMap<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let (chunk, place) = self.find(key).ok()?;
        Some(&self.chunks[chunk][place].1)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (chunk, place) = self.find(key).ok()?;
        Some(&mut self.chunks[chunk][place].1)
    }

    /// Returns what was there before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok((chunk, place)) => Some(std::mem::replace(&mut self.chunks[chunk][place].1, value)),
            Err(place) => {
                self.put(place, key, value);
                None
            }
        }
    }

    /// What is there; where nothing is, `value` is from now on.
    pub(crate) fn get_or_insert(&mut self, key: K, value: V) -> Option<&mut V> {
        match self.find(&key) {
            Ok((chunk, place)) => Some(&mut self.chunks[chunk][place].1),
            Err(place) => {
                self.put(place, key, value);
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (index, place) = self.find(key).ok()?;
        let (_, value) = self.chunks[index].remove(place);
        self.tidy(index);
        Some(value)
    }

    /// In the order of the keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flatten().map(|(key, value)| (key, value))
    }

    /// The same from `key` on.
    pub(crate) fn iter_from(&self, key: K) -> impl Iterator<Item = (&K, &V)> {
        let (Ok((chunk, place)) | Err((chunk, place))) = self.find(&key);
        let behind = self.chunks.iter().skip(chunk + 1).flatten();
        let there = self.chunks.get(chunk).map_or(&[][..], |chunk| &chunk[place..]);
        there.iter().chain(behind).map(|(key, value)| (key, value))
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        for chunk in &mut self.chunks {
            chunk.retain_mut(|(key, value)| keep(key, value));
        }
        for index in (0..self.chunks.len()).rev() {
            self.tidy(index);
        }
    }

    /// Puts in what is not there, where [`find`](Self::find) said.
    fn put(&mut self, (index, place): (usize, usize), key: K, value: V) {
        let has_room = |chunk: &Vec<_>| chunk.len() < CHUNK;
        let is_behind = self.chunks.get(index).is_none_or(|chunk| place == chunk.len());
        if self.chunks.get(index).is_some_and(has_room) {
            insert(&mut self.chunks[index], place, (key, value));
            self.firsts[index] = self.chunks[index][0].0;
        } else if is_behind && self.chunks.get(index + 1).is_some_and(has_room) {
            insert(&mut self.chunks[index + 1], 0, (key, value));
            self.firsts[index + 1] = key;
        } else if is_behind {
            // The rest of a run of keys is likely to come behind this one.
            let room = if self.chunks.is_empty() { 1 } else { CHUNK };
            let mut next = Vec::with_capacity(room);
            next.push((key, value));
            let next_index = self.chunks.len().min(index + 1);
            self.chunks.insert(next_index, next);
            self.firsts.insert(next_index, key);
        } else {
            let chunk = &mut self.chunks[index];
            let behind = chunk.split_off(place);
            chunk.push((key, value));
            chunk.shrink_to_fit();
            self.firsts[index] = chunk[0].0;
            self.firsts.insert(index + 1, behind[0].0);
            self.chunks.insert(index + 1, behind);
        }
    }

    /// The chunk that has the key or is to get it, and the place there.
    #[inline]
    fn find(&self, key: &K) -> Result<(usize, usize), (usize, usize)> {
        let index = self.firsts.partition_point(|first| first <= key).saturating_sub(1);
        let Some(chunk) = self.chunks.get(index) else { return Err((index, 0)) };
        let place = chunk.binary_search_by(|(other, _)| other.cmp(key));
        place.map(|place| (index, place)).map_err(|place| (index, place))
    }

    /// After something was removed from a chunk: gives its memory back, or joins it with the next.
    fn tidy(&mut self, index: usize) {
        let next = self.chunks.get(index + 1).map_or(0, Vec::len);
        let chunk = &mut self.chunks[index];
        let Some((first, _)) = chunk.first() else {
            self.chunks.remove(index);
            self.firsts.remove(index);
            return;
        };
        self.firsts[index] = *first;
        if next > 0 && chunk.len() + next <= CHUNK / 2 {
            let next = self.chunks.remove(index + 1);
            self.chunks[index].extend(next);
            self.firsts.remove(index + 1);
        } else if chunk.len() < chunk.capacity() / 2 {
            chunk.shrink_to_fit();
        }
    }
}

/// Left to itself, a chunk of 40 that grows takes the room of 80.
fn insert<T>(chunk: &mut Vec<T>, place: usize, entry: T) {
    if chunk.len() == chunk.capacity() {
        chunk.reserve_exact(chunk.len().min(CHUNK - chunk.len()));
    }
    chunk.insert(place, entry);
}

/// Moving half of them costs less than finding the chunk, and what each chunk takes beyond its entries is little.
const CHUNK: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(map: &PackedMap<u32, u32>, model: &BTreeMap<u32, u32>) {
        assert!(map.iter().eq(model));
        assert!(map.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.capacity() <= CHUNK));
        assert!(map.firsts.iter().eq(map.chunks.iter().map(|chunk| &chunk[0].0)));
    }

    proptest! {
        #[test]
        fn it_is_the_map_of_the_standard_library(
            runs in proptest::collection::vec((0u32..2000, 1u32..200, 0u8..4), 0..20),
        ) {
            let (mut map, mut model) = (PackedMap::default(), BTreeMap::new());
            for (start, len, what) in runs {
                match what {
                    0 => for key in start..start + len {
                        prop_assert_eq!(map.remove(&key), model.remove(&key));
                    },
                    1 => {
                        map.retain(|key, value| { *value += 1; key % len != 0 });
                        model.retain(|key, value| { *value += 1; key % len != 0 });
                    }
                    2 => for key in (start..start + len).rev() {
                        prop_assert_eq!(map.insert(key, len), model.insert(key, len));
                    },
                    _ => for key in start..start + len {
                        prop_assert_eq!(map.insert(key, len), model.insert(key, len));
                    },
                }
                check(&map, &model);
                prop_assert_eq!(map.get(&start), model.get(&start));
                prop_assert_eq!(map.get_mut(&start), model.get_mut(&start));
                for from in [0, start, start + len] {
                    prop_assert!(map.iter_from(from).eq(model.range(from..)));
                }
            }
        }
    }

    #[test]
    fn runs_leave_no_gaps_whatever_comes_between() {
        let mut map = PackedMap::default();
        for n in 0..64_000u32 {
            map.insert(n % 4 * 1_000_000 + n, ());
        }
        assert_eq!((map.iter().count(), map.chunks.len()), (64_000, 64_000 / CHUNK));
        for n in 0..63_000u32 {
            map.remove(&(n % 4 * 1_000_000 + n));
        }
        assert!(map.chunks.len() <= 2 * 1000 / (CHUNK / 2), "{} chunks", map.chunks.len());
    }
}
