//! Values of address blocks, found by the longest block that holds an address.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

/// A value for each of some blocks.
#[derive(Debug)]
pub struct Prefixes<V> {
    ipv4: Lengths<u32, V>,
    ipv6: Lengths<u128, V>,
}

/// The blocks of one family, found with one look for each length that there is: usually one.
#[derive(Debug)]
struct Lengths<K, V>(Vec<Length<K, V>>);

#[derive(Debug)]
struct Length<K, V> {
    prefix: u8,
    mask: K,
    blocks: HashMap<K, V, BuildHasherDefault<Mix>>,
}

impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self { ipv4: Lengths(Vec::new()), ipv6: Lengths(Vec::new()) }
    }
}

impl<V> Prefixes<V> {
    /// Sets the value of `block`.
    pub fn insert(&mut self, block: IpNetwork, value: V) {
        match block {
            IpNetwork::V4(block) => {
                self.ipv4.insert(block.prefix(), block.mask().into(), block.ip().into(), value);
            }
            IpNetwork::V6(block) => {
                self.ipv6.insert(block.prefix(), block.mask().into(), block.ip().into(), value);
            }
        }
    }

    /// The value of the longest block that `ip` is in.
    pub fn find(&self, ip: IpAddr) -> Option<&V> {
        match ip {
            IpAddr::V4(ip) => self.ipv4.find(ip.into()),
            IpAddr::V6(ip) => self.ipv6.find(ip.into()),
        }
    }
}

impl<K: Copy + Eq + Hash + std::ops::BitAnd<Output = K>, V> Lengths<K, V> {
    fn insert(&mut self, prefix: u8, mask: K, ip: K, value: V) {
        // The longest first.
        let at = match self.0.binary_search_by(|length| prefix.cmp(&length.prefix)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, Length { prefix, mask, blocks: HashMap::default() });
                at
            }
        };
        self.0[at].blocks.insert(ip & mask, value);
    }

    fn find(&self, ip: K) -> Option<&V> {
        self.0.iter().find_map(|length| length.blocks.get(&(ip & length.mask)))
    }
}

/// A hash of one multiplication: keys are subnets that the cluster's nodes hold, not anybody's choice.
#[derive(Debug, Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 divided by the golden ratio, as Knuth has it; the upper bits come down because maps use the lower ones too.
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block() -> impl Strategy<Value = IpNetwork> {
        let v4 = (any::<[u8; 2]>(), 8u8..=32).prop_map(|([a, b], prefix)| {
            // Few different bits, so that blocks overlap.
            let ip = IpAddr::from([10, a & 3, b & 3, b & 7]);
            IpNetwork::new(ip, prefix).unwrap()
        });
        let v6 = (any::<[u16; 2]>(), 16u8..=128).prop_map(|([a, b], prefix)| {
            let ip = IpAddr::from([0xfd00, a & 3, b & 3, 0, 0, 0, 0, b & 1]);
            IpNetwork::new(ip, prefix).unwrap()
        });
        prop_oneof![v4, v6]
            .prop_map(|block| IpNetwork::new(block.network(), block.prefix()).unwrap())
    }

    proptest! {
        #[test]
        fn the_longest_prefix_is_found(
            blocks in proptest::collection::btree_map(block(), 1u8..9, 0..30),
            asked in proptest::collection::vec(block(), 1..20),
        ) {
            let mut prefixes = Prefixes::default();
            blocks.iter().for_each(|(block, n)| prefixes.insert(*block, *n));
            for ip in asked.into_iter().map(|block| block.ip()) {
                let longest = blocks.iter().filter(|(block, _)| block.contains(ip)).max_by_key(|(block, _)| block.prefix());
                prop_assert_eq!(prefixes.find(ip), longest.map(|(_, n)| n));
            }
        }
    }
}
