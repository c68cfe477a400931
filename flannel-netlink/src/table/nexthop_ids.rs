use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use crate::{packed_map::PackedMap, state::Nexthop};

/// Which nexthop number a gateway has. Gateways keep their ids over restarts, because the
/// kernel's objects are read first.
#[derive(Debug)]
pub(crate) struct NexthopIds {
    range: RangeInclusive<u32>,
    by_gateway: PackedMap<(u32, IpAddr), u32>,
    taken: BTreeSet<u32>,
    next: u32,
}

impl NexthopIds {
    pub(crate) fn new(range: RangeInclusive<u32>) -> Self {
        let next = *range.start();
        Self { range, by_gateway: PackedMap::default(), taken: BTreeSet::new(), next }
    }

    /// Notes an object that is there or wanted; `ours` ones may be used again for the same gateway.
    pub(crate) fn note(&mut self, nexthop: &Nexthop, ours: bool) {
        self.taken.insert(nexthop.id);
        if ours {
            let key = (nexthop.link, nexthop.gateway);
            if self.by_gateway.get(&key).is_none() {
                self.by_gateway.insert(key, nexthop.id);
            }
        }
    }

    /// The number is free again.
    pub(crate) fn free(&mut self, nexthop: &Nexthop) {
        let key = (nexthop.link, nexthop.gateway);
        if self.by_gateway.get(&key) == Some(&nexthop.id) {
            self.by_gateway.remove(&key);
        }
        self.taken.remove(&nexthop.id);
    }

    /// The number of a gateway, a new one if it has none yet; `None` when the range is used up.
    pub(crate) fn number(&mut self, link: u32, gateway: IpAddr) -> Option<u32> {
        if let Some(id) = self.by_gateway.get(&(link, gateway)) {
            return Some(*id);
        }
        let behind = self.next..=*self.range.end();
        let before = *self.range.start()..=self.next;
        let id =
            behind.chain(before).find(|id| self.range.contains(id) && !self.taken.contains(id))?;
        self.taken.insert(id);
        self.by_gateway.insert((link, gateway), id);
        self.next = id.saturating_add(1);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_gateway_keeps_its_number() {
        let mut ids = NexthopIds::new(10..=12);
        assert_eq!(ids.number(1, gateway(1)), Some(10));
        assert_eq!(ids.number(1, gateway(2)), Some(11));
        assert_eq!(ids.number(1, gateway(1)), Some(10));
        assert_eq!(ids.number(2, gateway(1)), Some(12), "another device is another gateway");
        assert_eq!(ids.number(2, gateway(2)), None, "used up");
    }

    #[test]
    fn objects_from_before_are_taken_over_and_foreign_numbers_avoided() {
        let mut ids = NexthopIds::new(10..=12);
        ids.note(&Nexthop::new(11, 1, gateway(1), 90), true);
        ids.note(&Nexthop::new(10, 1, gateway(2), 4), false);
        assert_eq!(ids.number(1, gateway(1)), Some(11));
        assert_eq!(ids.number(1, gateway(2)), Some(12));
    }

    #[test]
    fn a_freed_number_is_used_again() {
        let mut ids = NexthopIds::new(10..=11);
        ids.number(1, gateway(1));
        ids.number(1, gateway(2));
        ids.free(&Nexthop::new(10, 1, gateway(1), 90));
        assert_eq!(ids.number(1, gateway(3)), Some(10));
    }

    #[test]
    fn a_gateway_keeps_its_number_when_another_of_its_objects_goes() {
        let mut ids = NexthopIds::new(10..=12);
        ids.number(1, gateway(1));
        let other = Nexthop::new(11, 1, gateway(1), 90);
        ids.note(&other, true);
        ids.free(&other);
        assert_eq!(ids.number(1, gateway(1)), Some(10));
        assert_eq!(ids.number(1, gateway(2)), Some(11));
    }

    #[test]
    fn an_empty_range_has_no_numbers() {
        #[expect(clippy::reversed_empty_ranges, reason = "the default mark has an empty range")]
        let mut ids = NexthopIds::new(1..=0);
        assert_eq!(ids.number(1, gateway(1)), None);
    }
}
