//! Which peer an Ethernet address belongs to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_core::{Lease, Peers, Revision, Subnet};
use flannel_netlink::state::MacAddress;

use crate::{KIND, family::Family, lease_data};

/// The Ethernet addresses that peers claim.
///
/// A device sends frames for one address to one remote. Of peers that claim one address for different remotes, the one with the
/// lowest subnet has it. Peers with the same remote share it: they are several leases of one node.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_mac: BTreeMap<Claim, BTreeMap<Subnet, IpAddr>>,
    by_subnet: BTreeMap<Subnet, Vec<Claim>>,
    seen: Option<Revision>,
}

type Claim = (Family, MacAddress);

impl Claims {
    /// Takes in what changed in `peers`; true if the answers for peers that did not change may be others now.
    pub(crate) fn follow(&mut self, peers: &Peers) -> bool {
        let changed = self.seen.as_ref().and_then(|seen| peers.changed_since(seen));
        let changed: BTreeSet<Subnet> = changed.unwrap_or_else(|| {
            let present = peers.iter().map(|lease| lease.subnet);
            present.chain(self.by_subnet.keys().copied()).collect()
        });
        self.seen = Some(peers.revision().clone());
        let mut contested = false;
        for subnet in changed {
            contested |= self.set(subnet, &peers.get(&subnet).map(claims_of).unwrap_or_default());
        }
        contested
    }

    /// The peer that has the address which the peer with `subnet` claims, if that is another one.
    pub(crate) fn rival(&self, family: Family, mac: MacAddress, subnet: &Subnet) -> Option<Subnet> {
        let claimants = self.by_mac.get(&(family, mac))?;
        let (winner, remote) = claimants.first_key_value()?;
        (claimants.get(subnet)? != remote).then_some(*winner)
    }

    fn set(&mut self, subnet: Subnet, claims: &[(Claim, IpAddr)]) -> bool {
        let mut contested = false;
        for claim in self.by_subnet.remove(&subnet).unwrap_or_default() {
            let Some(claimants) = self.by_mac.get_mut(&claim) else {
                continue;
            };
            contested |= is_contested(claimants);
            claimants.remove(&subnet);
            if claimants.is_empty() {
                self.by_mac.remove(&claim);
            }
        }
        for (claim, remote) in claims {
            let claimants = self.by_mac.entry(*claim).or_default();
            claimants.insert(subnet, *remote);
            contested |= is_contested(claimants);
        }
        if !claims.is_empty() {
            self.by_subnet.insert(subnet, claims.iter().map(|(claim, _)| *claim).collect());
        }
        contested
    }
}

fn claims_of(peer: &Lease) -> Vec<(Claim, IpAddr)> {
    if peer.attrs.backend_type != KIND {
        return Vec::new();
    }
    let claim = |family: Family| {
        let mac = lease_data::parse(family.data(peer)).ok()?;
        Some(((family, mac), family.public(&peer.attrs)?))
    };
    Family::ALL.into_iter().filter_map(claim).collect()
}

fn is_contested(claimants: &BTreeMap<Subnet, IpAddr>) -> bool {
    let mut remotes = claimants.values();
    let first = remotes.next();
    remotes.any(|remote| Some(remote) != first)
}

#[cfg(test)]
mod tests {
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

    fn rival(claims: &Claims, n: u8, mac: u8) -> Option<Subnet> {
        claims.rival(Family::V4, MacAddress::new([2, 0, 0, 0, 0, mac]), &subnet(n))
    }

    #[test]
    fn the_lowest_subnet_has_an_address_that_two_claim() {
        let (mut peers, mut claims) = (peers(), Claims::default());
        peers.fold(LeaseEvent::Reset(vec![lease(1, 7, 1), lease(2, 7, 2), lease(3, 8, 3)]));
        assert!(claims.follow(&peers));
        assert_eq!(rival(&claims, 1, 7), None);
        assert_eq!(rival(&claims, 2, 7), Some(subnet(1)));
        assert_eq!(rival(&claims, 3, 8), None);
        peers.fold(LeaseEvent::Remove(subnet(1)));
        assert!(claims.follow(&peers), "peer 2 has to be looked at again");
        assert_eq!(rival(&claims, 2, 7), None);
    }

    #[test]
    fn two_leases_of_one_node_share_its_address() {
        let (mut peers, mut claims) = (peers(), Claims::default());
        peers.fold(LeaseEvent::Reset(vec![lease(1, 7, 1), lease(2, 7, 1)]));
        assert!(!claims.follow(&peers));
        assert_eq!(rival(&claims, 2, 7), None);
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
                        claims.rival(Family::V4, mac, &subnet(n))
                    };
                    prop_assert_eq!(answer(&claims), answer(&anew));
                    let before = known.insert(n, answer(&anew)).flatten();
                    prop_assert!(all || n == changed || before == answer(&anew), "{} was not told", n);
                }
            }
        }
    }
}
