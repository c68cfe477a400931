//! Which peer a packet goes to, and which peer it may come from.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

use ipnetwork::IpNetwork;

use crate::{config::SourceCheck, plan::ForwardingPlan};

/// What packets are judged by. Never changed: a new one takes its place.
#[derive(Debug, Default)]
pub(crate) struct Table {
    ipv4: Prefixes<u32>,
    ipv6: Prefixes<u128>,
    known: HashSet<IpAddr, BuildHasherDefault<Mix>>,
    /// Our own addresses and port.
    local: Vec<SocketAddr>,
    source_check: SourceCheck,
}

/// The longest prefix of a key, found with one look for each length that there is: usually one.
#[derive(Debug)]
struct Prefixes<K> {
    /// The longest first.
    lengths: Vec<Length<K>>,
}

#[derive(Debug)]
struct Length<K> {
    prefix: u8,
    mask: K,
    blocks: HashMap<K, SocketAddr, BuildHasherDefault<Mix>>,
}

impl Table {
    pub(crate) fn new(plan: &ForwardingPlan) -> Self {
        let mut table = Self {
            local: plan.local.iter().map(|ip| SocketAddr::new(*ip, plan.port)).collect(),
            source_check: plan.source_check,
            ..Self::default()
        };
        for (block, endpoint) in &plan.endpoints {
            table.known.insert(endpoint.ip());
            match block {
                IpNetwork::V4(block) => {
                    let mask = u32::from(block.mask());
                    table.ipv4.insert(block.prefix(), mask, block.ip().into(), *endpoint);
                }
                IpNetwork::V6(block) => {
                    let mask = u128::from(block.mask());
                    table.ipv6.insert(block.prefix(), mask, block.ip().into(), *endpoint);
                }
            }
        }
        table
    }

    /// Where the peer is reached that has `ip` in its subnet.
    pub(crate) fn endpoint(&self, ip: IpAddr) -> Option<SocketAddr> {
        match ip {
            IpAddr::V4(ip) => self.ipv4.find(ip.into()),
            IpAddr::V6(ip) => self.ipv6.find(ip.into()),
        }
    }

    /// Whether a peer is reached at `ip`.
    pub(crate) fn is_known(&self, ip: IpAddr) -> bool {
        self.known.contains(&ip)
    }

    /// Whether a datagram from there is one of our own.
    pub(crate) fn is_local(&self, from: SocketAddr) -> bool {
        self.local.contains(&from)
    }

    pub(crate) fn source_check(&self) -> SourceCheck {
        self.source_check
    }
}

impl<K> Default for Prefixes<K> {
    fn default() -> Self {
        Self { lengths: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash + std::ops::BitAnd<Output = K>> Prefixes<K> {
    fn insert(&mut self, prefix: u8, mask: K, ip: K, endpoint: SocketAddr) {
        let at = match self.lengths.binary_search_by(|length| prefix.cmp(&length.prefix)) {
            Ok(at) => at,
            Err(at) => {
                self.lengths.insert(at, Length { prefix, mask, blocks: HashMap::default() });
                at
            }
        };
        self.lengths[at].blocks.insert(ip & mask, endpoint);
    }

    fn find(&self, ip: K) -> Option<SocketAddr> {
        self.lengths.iter().find_map(|length| length.blocks.get(&(ip & length.mask)).copied())
    }
}

/// A hash of one multiplication: keys are subnets that the cluster's nodes hold, not anybody's choice.
#[derive(Debug, Default)]
struct Mix(u64);

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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn table(endpoints: BTreeMap<IpNetwork, SocketAddr>) -> Table {
        Table::new(&ForwardingPlan { endpoints, ..ForwardingPlan::to(&[]) })
    }

    fn endpoint(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 8285).into()
    }

    #[test]
    fn a_table_knows_peers_and_itself() {
        let table = table([("10.3.2.0/24".parse().unwrap(), endpoint(2))].into());
        assert!(table.is_known([192, 0, 2, 2].into()));
        assert!(!table.is_known([192, 0, 2, 3].into()));
        assert!(table.is_local(endpoint(3)));
        assert!(!table.is_local(endpoint(2)));
    }

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
            let endpoints = blocks.iter().map(|(block, n)| (*block, endpoint(*n))).collect();
            let table = table(endpoints);
            for ip in asked.into_iter().map(|block| block.ip()) {
                let longest = blocks.iter().filter(|(block, _)| block.contains(ip)).max_by_key(|(block, _)| block.prefix());
                prop_assert_eq!(table.endpoint(ip), longest.map(|(_, n)| endpoint(*n)));
            }
        }
    }
}
