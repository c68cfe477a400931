//! Which peer an Ethernet address belongs to.

use std::mem;

use flannel_core::{Lease, Peers, Revision, Subnet};
use flannel_netlink::state::MacAddress;

use crate::{KIND, family::Family, lease_data};

/// The Ethernet addresses that peers claim.
///
/// A device sends frames for one address to one remote. Of peers that claim one address for different remotes, the one with the
/// lowest subnet has it. Peers with the same remote share it: they are several leases of one node.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// By number. Those that are free claim nothing.
    claimants: Vec<Claimant>,
    free: Vec<u32>,
    /// Numbers in the order of the subnets.
    by_subnet: Vec<u32>,
    /// Numbers in the order of what is claimed, for IPv4 and for IPv6, and then of the subnets. Nearly every address has one
    /// claimant; its remote is in its lease.
    by_mac: [Vec<u32>; 2],
    seen: Option<Revision>,
}

#[derive(Clone, Copy, Debug)]
struct Claimant {
    subnet: Subnet,
    macs: [Option<MacAddress>; 2],
}

impl Claims {
    /// Takes in what changed in `peers`; true if the answers for peers that did not change may be others now.
    pub(crate) fn follow(&mut self, peers: &Peers) -> bool {
        let changed = self.seen.as_ref().and_then(|seen| peers.changed_since(seen));
        self.seen = Some(peers.revision().clone());
        let Some(changed) = changed else {
            self.start_anew(peers);
            return true;
        };
        let mut contested = false;
        for subnet in changed {
            contested |= self.set(subnet, peers);
        }
        contested
    }

    /// The peer that has the address which the peer with `subnet` claims, if that is another one. `peers` are those that were
    /// followed last.
    pub(crate) fn rival(
        &self,
        peers: &Peers,
        family: Family,
        mac: MacAddress,
        subnet: &Subnet,
    ) -> Option<Subnet> {
        let remote = |subnet: &Subnet| family.public(&peers.get(subnet)?.attrs);
        let winner = self.claimants(family, mac).next()?;
        (winner != subnet && remote(winner) != remote(subnet)).then_some(*winner)
    }

    /// Those that claim an address, in the order of their subnets.
    fn claimants(&self, family: Family, mac: MacAddress) -> impl Iterator<Item = &Subnet> {
        let by_mac = &self.by_mac[family as usize];
        let has = move |number: &&u32| self.mac(family, **number) == Some(mac);
        let from = by_mac.partition_point(|number| self.mac(family, *number) < Some(mac));
        by_mac[from..].iter().take_while(has).map(|number| &self.claimant(*number).subnet)
    }

    fn start_anew(&mut self, peers: &Peers) {
        let claims =
            peers.iter().map(|peer| Claimant { subnet: peer.subnet, macs: claims_of(peer) });
        self.claimants = claims.filter(|claimant| claimant.macs != [None; 2]).collect();
        self.claimants.shrink_to_fit();
        self.free.clear();
        // The peers are in the order of their subnets.
        self.by_subnet = (0..).take(self.claimants.len()).collect();
        self.by_mac = Family::ALL.map(|family| {
            let claims = |number: &u32| self.mac(family, *number).is_some();
            let mut numbers: Vec<_> = self.by_subnet.iter().copied().filter(claims).collect();
            numbers.sort_unstable_by_key(|number| (self.mac(family, *number), *number));
            numbers
        });
    }

    fn set(&mut self, subnet: Subnet, peers: &Peers) -> bool {
        let macs = peers.get(&subnet).map_or([None; 2], claims_of);
        let place = self.by_subnet.binary_search_by_key(&subnet, |n| self.claimant(*n).subnet);
        let number = match place {
            Ok(place) => self.by_subnet[place],
            Err(_) if macs == [None; 2] => return false,
            Err(place) => {
                let number = self.number(Claimant { subnet, macs: [None; 2] });
                self.by_subnet.insert(place, number);
                number
            }
        };
        let mut shared = false;
        for (family, mac) in Family::ALL.into_iter().zip(macs) {
            let place = |this: &Self| {
                let wanted = this.mac(family, number).map(|mac| (Some(mac), subnet))?;
                let key = |n: &u32| (this.mac(family, *n), this.claimant(*n).subnet);
                Some(this.by_mac[family as usize].binary_search_by_key(&wanted, key))
            };
            if let Some(Ok(place)) = place(self) {
                self.by_mac[family as usize].remove(place);
            }
            let before =
                mem::replace(&mut self.claimants[number as usize].macs[family as usize], mac);
            shared |= before
                .into_iter()
                .chain(mac)
                .any(|mac| self.claimants(family, mac).next().is_some());
            if let Some(Err(place)) = place(self) {
                self.by_mac[family as usize].insert(place, number);
            }
        }
        if let (Ok(place), [None, None]) = (place, macs) {
            self.by_subnet.remove(place);
            self.free.push(number);
        }
        shared
    }

    fn number(&mut self, claimant: Claimant) -> u32 {
        if let Some(number) = self.free.pop() {
            self.claimants[number as usize] = claimant;
            return number;
        }
        self.claimants.push(claimant);
        u32::try_from(self.claimants.len() - 1).expect("there are fewer subnets than numbers")
    }

    fn claimant(&self, number: u32) -> &Claimant {
        &self.claimants[number as usize]
    }

    fn mac(&self, family: Family, number: u32) -> Option<MacAddress> {
        self.claimant(number).macs[family as usize]
    }
}

/// What a peer claims in each of [`Family::ALL`].
fn claims_of(peer: &Lease) -> [Option<MacAddress>; 2] {
    if peer.attrs.backend_type != KIND {
        return [None; 2];
    }
    Family::ALL.map(|family| {
        family.public(&peer.attrs)?;
        lease_data::parse(family.data(peer)).ok()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flannel_core::{LeaseAttrs, LeaseEvent, RawJson};
    use proptest::prelude::*;

    use super::*;

    fn lease(n: u8, mac: u8, remote: u8) -> Lease {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}"#);
        let attrs = LeaseAttrs {
            public_ip: Some([192, 0, 2, remote].into()),
            backend_type: KIND.into(),
            backend_data: Some(RawJson::new(&data).unwrap()),
            ..LeaseAttrs::default()
        };
        Lease::new(subnet(n), attrs)
    }

    fn subnet(n: u8) -> Subnet {
        format!("10.3.{n}.0-24").parse().unwrap()
    }

    fn peers() -> Peers {
        let config = r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap();
        Peers::new(config, lease(250, 250, 250))
    }

    fn rival(claims: &Claims, peers: &Peers, n: u8, mac: u8) -> Option<Subnet> {
        claims.rival(peers, Family::V4, MacAddress::new([2, 0, 0, 0, 0, mac]), &subnet(n))
    }

    #[test]
    fn the_lowest_subnet_has_an_address_that_two_claim() {
        let (mut peers, mut claims) = (peers(), Claims::default());
        peers.fold(LeaseEvent::Reset(vec![lease(1, 7, 1), lease(2, 7, 2), lease(3, 8, 3)]));
        assert!(claims.follow(&peers));
        assert_eq!(rival(&claims, &peers, 1, 7), None);
        assert_eq!(rival(&claims, &peers, 2, 7), Some(subnet(1)));
        assert_eq!(rival(&claims, &peers, 3, 8), None);
        peers.fold(LeaseEvent::Remove(subnet(1)));
        assert!(claims.follow(&peers), "peer 2 has to be looked at again");
        assert_eq!(rival(&claims, &peers, 2, 7), None);
    }

    #[test]
    fn two_leases_of_one_node_share_its_address() {
        let (mut peers, mut claims) = (peers(), Claims::default());
        peers.fold(LeaseEvent::Reset(vec![lease(1, 7, 1), lease(2, 7, 1)]));
        claims.follow(&peers);
        assert_eq!(rival(&claims, &peers, 2, 7), None);
    }

    proptest! {
        /// Following step by step, and planning anew those that the answers are other for, equals looking at all.
        #[test]
        fn following_equals_starting_anew(
            steps in proptest::collection::vec((1u8..6, proptest::option::of((0u8..3, 0u8..3))), 0..40),
        ) {
            let (mut peers, mut claims) = (peers(), Claims::default());
            let mut known: BTreeMap<u8, Option<Subnet>> = BTreeMap::new();
            for (changed, step) in steps {
                match step {
                    Some((mac, remote)) => {
                        peers.fold(LeaseEvent::Upsert(lease(changed, mac, remote + 1)))
                    }
                    None => peers.fold(LeaseEvent::Remove(subnet(changed))),
                };
                let all = claims.follow(&peers);
                let mut anew = Claims::default();
                anew.follow(&peers);
                for n in 1..6 {
                    let answer = |claims: &Claims| {
                        let mac = lease_data::parse(Family::V4.data(peers.get(&subnet(n))?)).unwrap();
                        claims.rival(&peers, Family::V4, mac, &subnet(n))
                    };
                    prop_assert_eq!(answer(&claims), answer(&anew));
                    let before = known.insert(n, answer(&anew)).flatten();
                    prop_assert!(all || n == changed || before == answer(&anew), "{} was not told", n);
                }
            }
        }
    }
}
