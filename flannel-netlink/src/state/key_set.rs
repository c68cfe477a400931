use std::fmt;

use super::Key;
use crate::packed::PackedKey;

/// A few keys in little memory: what one of ten thousand peers has. A route's of IPv4 takes 14 bytes.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct KeySet(Box<[u8]>);

impl KeySet {
    /// The keys in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = Key> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (key, behind) = PackedKey::read(rest)?;
            rest = behind;
            Some(key.key())
        })
    }
}

impl FromIterator<Key> for KeySet {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        let mut bytes = Vec::new();
        for key in keys {
            bytes.extend_from_slice(PackedKey::of(&key).bytes());
        }
        Self(bytes.into())
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::testing::object;

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(objects in proptest::collection::vec(object(), 0..8)) {
            let keys: Vec<Key> = objects.iter().map(|object| object.key()).collect();
            let set: KeySet = keys.iter().copied().collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), keys);
        }
    }
}
