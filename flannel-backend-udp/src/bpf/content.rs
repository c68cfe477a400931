//! What the maps should hold, and what it takes to get there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnetwork::IpNetwork;

use super::layout;

/// Endpoints and peers as they stand in the maps.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Content {
    pub(super) endpoints4: BTreeMap<[u8; 8], [u8; 8]>,
    pub(super) endpoints6: BTreeMap<[u8; 20], [u8; 20]>,
    pub(super) peers: BTreeSet<[u8; 20]>,
}

/// One of the maps with [`Content`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Place {
    Endpoints4,
    Endpoints6,
    Peers,
}

/// One step on the way from one content to another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Step {
    pub(super) place: Place,
    pub(super) key: Vec<u8>,
    pub(super) change: Change,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Change {
    Add(Vec<u8>),
    Remove,
    Replace(Vec<u8>),
}

impl Content {
    /// What peers with these endpoints need, of whom `narrow` ones are behind paths that take only packets of this size. A block
    /// whose endpoint is of the other family has no place: its packets take the userspace engine.
    pub(super) fn desired(
        endpoints: &BTreeMap<IpNetwork, SocketAddr>,
        narrow: &BTreeMap<IpAddr, u16>,
    ) -> Self {
        let mut content = Self::default();
        for (block, endpoint) in endpoints {
            let takes = narrow.get(&endpoint.ip()).copied().unwrap_or_default();
            match (block, endpoint) {
                (IpNetwork::V4(block), SocketAddr::V4(at)) => {
                    let value = layout::endpoint4(*at, takes);
                    content.endpoints4.insert(layout::prefix4(*block), value);
                }
                (IpNetwork::V6(block), SocketAddr::V6(at)) => {
                    let value = layout::endpoint6(*at, takes);
                    content.endpoints6.insert(layout::prefix6(*block), value);
                }
                _ => continue,
            }
            content.peers.insert(layout::peer(endpoint.ip()));
        }
        content
    }

    /// Whether a path is noted that takes less than the network card.
    pub(super) fn has_narrow(&self) -> bool {
        self.endpoints4.values().any(|value| value[6..] != [0; 2])
            || self.endpoints6.values().any(|value| value[18..] != [0; 2])
    }

    /// The steps from `self` to `desired`. A peer is known before it has blocks and until it has none, so that nobody is taken
    /// for a stranger meanwhile.
    pub(super) fn diff(&self, desired: &Self) -> Vec<Step> {
        let peers = |from: &Self| from.peers.iter().map(|key| (*key, PRESENT)).collect();
        let mut steps = steps(Place::Peers, &peers(self), &peers(desired));
        steps.extend(self::steps(Place::Endpoints4, &self.endpoints4, &desired.endpoints4));
        steps.extend(self::steps(Place::Endpoints6, &self.endpoints6, &desired.endpoints6));
        steps.sort_by_key(|step| match (step.place, &step.change) {
            (Place::Peers, Change::Remove) => 2,
            (Place::Peers, _) => 0,
            _ => 1,
        });
        steps
    }

    /// Takes `step`, which the kernel has taken.
    pub(super) fn apply(&mut self, step: &Step) {
        let key = step.key.as_slice();
        match (step.place, &step.change) {
            (Place::Peers, Change::Remove) => drop(self.peers.remove(key)),
            (Place::Peers, _) => drop(key.try_into().map(|key| self.peers.insert(key))),
            (Place::Endpoints4, change) => alter(&mut self.endpoints4, key, change),
            (Place::Endpoints6, change) => alter(&mut self.endpoints6, key, change),
        }
    }
}

impl Place {
    pub(super) const ALL: [Self; 3] = [Self::Endpoints4, Self::Endpoints6, Self::Peers];
}

impl Change {
    /// What stands there afterwards.
    pub(super) fn value(&self) -> Option<&[u8]> {
        match self {
            Self::Add(value) | Self::Replace(value) => Some(value),
            Self::Remove => None,
        }
    }
}

fn steps<const K: usize, const V: usize>(
    place: Place,
    actual: &BTreeMap<[u8; K], [u8; V]>,
    desired: &BTreeMap<[u8; K], [u8; V]>,
) -> Vec<Step> {
    let step = |key: &[u8; K], change| Step { place, key: key.to_vec(), change };
    let writes = desired.iter().filter_map(|(key, value)| match actual.get(key) {
        Some(there) if there == value => None,
        Some(_) => Some(step(key, Change::Replace(value.to_vec()))),
        None => Some(step(key, Change::Add(value.to_vec()))),
    });
    let removals = actual
        .keys()
        .filter(|key| !desired.contains_key(*key))
        .map(|key| step(key, Change::Remove));
    writes.chain(removals).collect()
}

fn alter<const K: usize, const V: usize>(
    map: &mut BTreeMap<[u8; K], [u8; V]>,
    key: &[u8],
    change: &Change,
) {
    let Ok(key) = <[u8; K]>::try_from(key) else { return };
    match change.value().and_then(|value| value.try_into().ok()) {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// What stands at each address in `peers`: nobody looks at it.
pub(super) const PRESENT: [u8; 4] = [1, 0, 0, 0];

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn desired(endpoints: &BTreeMap<IpNetwork, SocketAddr>) -> Content {
        Content::desired(endpoints, &BTreeMap::new())
    }

    fn endpoints(entries: &[(&str, &str)]) -> BTreeMap<IpNetwork, SocketAddr> {
        entries.iter().map(|(block, at)| (block.parse().unwrap(), at.parse().unwrap())).collect()
    }

    #[test]
    fn each_block_has_an_endpoint_and_each_address_is_known_once() {
        let content = desired(&endpoints(&[
            ("10.3.2.0/24", "192.0.2.2:8285"),
            ("10.3.4.0/25", "192.0.2.2:8285"),
            ("fd00:2::/64", "[2001:db8::2]:9000"),
            ("fd00:3::/64", "192.0.2.3:8285"),
        ]));
        assert_eq!((content.endpoints4.len(), content.endpoints6.len()), (2, 1));
        let known =
            [layout::peer([192, 0, 2, 2].into()), layout::peer("2001:db8::2".parse().unwrap())];
        assert_eq!(content.peers, known.into());
    }

    #[test]
    fn a_path_that_takes_less_is_noted_at_each_block_behind_it() {
        let all = endpoints(&[
            ("10.3.2.0/24", "192.0.2.2:8285"),
            ("10.3.4.0/24", "192.0.2.3:8285"),
            ("fd00:2::/64", "[2001:db8::2]:8285"),
        ]);
        let narrow =
            BTreeMap::from([([192, 0, 2, 2].into(), 1272), ("2001:db8::2".parse().unwrap(), 1232)]);
        let content = Content::desired(&all, &narrow);
        let steps = desired(&all).diff(&content);
        let places: Vec<_> = steps.iter().map(|step| step.place).collect();
        assert_eq!(places, [Place::Endpoints4, Place::Endpoints6]);
        assert!(steps.iter().all(|step| matches!(step.change, Change::Replace(_))), "{steps:?}");
        assert_eq!(steps[0].change.value().unwrap()[6..], 1272_u16.to_ne_bytes());
        assert_eq!(steps[1].change.value().unwrap()[18..], 1232_u16.to_ne_bytes());
    }

    #[test]
    fn a_peer_is_known_before_its_blocks_and_longer_than_they_are() {
        let one = desired(&endpoints(&[("10.3.2.0/24", "192.0.2.2:8285")]));
        let other = desired(&endpoints(&[("10.3.3.0/24", "192.0.2.3:8285")]));
        let kinds: Vec<_> = one
            .diff(&other)
            .iter()
            .map(|step| (step.place, step.change.value().is_some()))
            .collect();
        use Place::{Endpoints4, Peers};
        assert_eq!(kinds, [(Peers, true), (Endpoints4, true), (Endpoints4, false), (Peers, false)]);
    }

    prop_compose! {
        fn arbitrary()(entries in prop::collection::vec((any::<bool>(), 0_u8..12, 20_u8..26, 0_u8..5, 1_u16..4), 0..12)) -> BTreeMap<IpNetwork, SocketAddr> {
            let one = |(is_ipv4, block, prefix, host, port)| {
                let (block, host): (IpAddr, IpAddr) = if is_ipv4 {
                    (Ipv4Addr::new(10, 3, block, 0).into(), Ipv4Addr::new(192, 0, 2, host).into())
                } else {
                    (Ipv6Addr::new(0xfd00, block.into(), 0, 0, 0, 0, 0, 0).into(), Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, host.into()).into())
                };
                // Endpoints are told by blocks, which have no host bits.
                let block = IpNetwork::new(block, prefix).unwrap().network();
                (IpNetwork::new(block, prefix).unwrap(), SocketAddr::new(host, port))
            };
            entries.into_iter().map(one).collect()
        }
    }

    proptest! {
        #[test]
        fn the_steps_lead_to_what_is_desired_and_then_there_are_none(from in arbitrary(), to in arbitrary()) {
            let (mut content, desired) = (desired(&from), desired(&to));
            for step in content.diff(&desired) {
                // Whatever has an endpoint is known, at every moment.
                content.apply(&step);
                for value in content.endpoints4.values() {
                    let at = Ipv4Addr::from(<[u8; 4]>::try_from(&value[..4]).unwrap());
                    prop_assert!(content.peers.contains(&layout::peer(at.into())));
                }
            }
            prop_assert_eq!(&content, &desired);
            prop_assert_eq!(content.diff(&desired), []);
        }

        #[test]
        fn what_stays_is_not_touched(from in arbitrary(), to in arbitrary()) {
            let steps = desired(&from).diff(&desired(&to));
            for (block, endpoint) in &from {
                if let (IpNetwork::V4(v4), Some(same)) = (block, to.get(block)) && same == endpoint {
                    let key = layout::prefix4(*v4);
                    prop_assert!(steps.iter().all(|step| step.place != Place::Endpoints4 || step.key != key));
                }
            }
        }
    }
}
