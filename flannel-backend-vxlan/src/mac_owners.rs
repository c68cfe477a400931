//! Which peer an Ethernet address belongs to.

use std::collections::BTreeSet;

use flannel_core::{Lease, Peers, Revision, Subnet};
use flannel_netlink::state::MacAddress;

use crate::{KIND, family::Family, lease_data};

/// The Ethernet addresses that peers claim.
///
/// A device sends frames for one address to one remote. Of peers that claim one address for different remotes, the one with the
/// lowest subnet has it. Peers with the same remote share it: they are several leases of one node.
#[derive(Debug, Default)]
pub(crate) struct MacOwners {
    /// Who claims which, in [`Family::ALL`]. No subnet is `None`, which comes before all.
    claimants: [BTreeSet<(MacAddress, Option<Subnet>)>; 2],
    seen: Option<Revision>,
}

impl MacOwners {
    /// Takes in what changed in `peers`; true if the answers for peers that did not change may be others now.
    pub(crate) fn follow(&mut self, peers: &Peers) -> bool {
        let changed = self.seen.as_ref().and_then(|seen| peers.changed_since(seen));
        self.seen = Some(peers.revision().clone());
        match changed {
            None => {
                // Trees that are built at once have no gaps.
                self.claimants = Family::ALL.map(|family| {
                    let claim = |peer: &Lease| Some((claimed_by(peer, family)?, Some(peer.subnet)));
                    peers.iter().filter_map(claim).collect()
                });
                true
            }
            Some(changed) if changed.is_empty() => false,
            Some(changed) => Family::ALL
                .into_iter()
                .fold(false, |contested, family| self.take(family, &changed, peers) | contested),
        }
    }

    /// The peer that has the address which the peer with `subnet` claims, if that is another one. `peers` are those that were
    /// followed last.
    pub(crate) fn conflict(
        &self,
        peers: &Peers,
        family: Family,
        mac: MacAddress,
        subnet: &Subnet,
    ) -> Option<Subnet> {
        let remote = |subnet: &Subnet| family.public(&peers.get(subnet)?.attrs);
        let owner = self.claimants(family, mac).next()?;
        (owner != subnet && remote(owner) != remote(subnet)).then_some(*owner)
    }

    /// The families in which a peer with a lower subnet claims the address that this node, the holder of `own`, has. That peer has
    /// it for all others.
    pub(crate) fn lost_by(&self, peers: &Peers, own: &[(Family, MacAddress)]) -> Vec<Family> {
        let subnet = &peers.own().subnet;
        let is_lost = |(family, mac): &&(Family, MacAddress)| {
            self.claimants(*family, *mac).next().is_some_and(|claimant| claimant < subnet)
        };
        own.iter().filter(is_lost).map(|(family, _)| *family).collect()
    }

    /// Those that claim an address, in the order of their subnets.
    fn claimants(&self, family: Family, mac: MacAddress) -> impl Iterator<Item = &Subnet> {
        let claimants = &self.claimants[family as usize];
        let same = claimants.range((mac, None)..).take_while(move |(other, _)| *other == mac);
        same.filter_map(|(_, subnet)| subnet.as_ref())
    }

    /// Takes in what those that `changed` claim now. What they claimed before is looked for among all: to keep it beside would take
    /// as much memory again.
    fn take(&mut self, family: Family, changed: &BTreeSet<Subnet>, peers: &Peers) -> bool {
        let has_changed = |subnet: &Subnet| changed.contains(subnet);
        let mut macs = BTreeSet::new();
        let claimants = &mut self.claimants[family as usize];
        claimants.retain(|(mac, subnet)| {
            let goes = subnet.as_ref().is_some_and(has_changed);
            if goes {
                macs.insert(*mac);
            }
            !goes
        });
        for peer in changed.iter().filter_map(|subnet| peers.get(subnet)) {
            if let Some(mac) = claimed_by(peer, family) {
                macs.insert(mac);
                claimants.insert((mac, Some(peer.subnet)));
            }
        }
        let contested = |mac| self.claimants(family, mac).any(|claimant| !has_changed(claimant));
        macs.into_iter().any(contested)
    }
}

/// What a peer claims in a family.
fn claimed_by(peer: &Lease, family: Family) -> Option<MacAddress> {
    if peer.attrs.backend_type != KIND {
        return None;
    }
    family.public(&peer.attrs)?;
    lease_data::parse(family.data(peer)).ok()
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

    fn conflict(mac_owners: &MacOwners, peers: &Peers, n: u8, mac: u8) -> Option<Subnet> {
        mac_owners.conflict(peers, Family::V4, MacAddress::new([2, 0, 0, 0, 0, mac]), &subnet(n))
    }

    #[test]
    fn the_lowest_subnet_has_an_address_that_two_claim() {
        let (mut peers, mut claims) = (peers(), MacOwners::default());
        peers.fold(LeaseEvent::reset(vec![lease(1, 7, 1), lease(2, 7, 2), lease(3, 8, 3)]));
        assert!(claims.follow(&peers));
        assert_eq!(conflict(&claims, &peers, 1, 7), None);
        assert_eq!(conflict(&claims, &peers, 2, 7), Some(subnet(1)));
        assert_eq!(conflict(&claims, &peers, 3, 8), None);
        peers.fold(LeaseEvent::Remove(subnet(1)));
        assert!(claims.follow(&peers), "peer 2 has to be looked at again");
        assert_eq!(conflict(&claims, &peers, 2, 7), None);
    }

    #[test]
    fn two_leases_of_one_node_share_its_address() {
        let (mut peers, mut claims) = (peers(), MacOwners::default());
        peers.fold(LeaseEvent::reset(vec![lease(1, 7, 1), lease(2, 7, 1)]));
        claims.follow(&peers);
        assert_eq!(conflict(&claims, &peers, 2, 7), None);
    }

    proptest! {
        /// Following step by step, and planning anew those that the answers are other for, equals looking at all.
        #[test]
        fn following_equals_starting_anew(
            steps in proptest::collection::vec((1u8..6, proptest::option::of((0u8..3, 0u8..3))), 0..40),
        ) {
            let (mut peers, mut claims) = (peers(), MacOwners::default());
            let mut known: BTreeMap<u8, Option<Subnet>> = BTreeMap::new();
            for (changed, step) in steps {
                match step {
                    Some((mac, remote)) => {
                        peers.fold(LeaseEvent::upsert(lease(changed, mac, remote + 1)))
                    }
                    None => peers.fold(LeaseEvent::Remove(subnet(changed))),
                };
                let all = claims.follow(&peers);
                let mut anew = MacOwners::default();
                anew.follow(&peers);
                for n in 1..6 {
                    let answer = |mac_owners: &MacOwners| {
                        let mac = lease_data::parse(Family::V4.data(peers.get(&subnet(n))?)).unwrap();
                        mac_owners.conflict(&peers, Family::V4, mac, &subnet(n))
                    };
                    prop_assert_eq!(answer(&claims), answer(&anew));
                    let before = known.insert(n, answer(&anew)).flatten();
                    prop_assert!(all || n == changed || before == answer(&anew), "{} was not told", n);
                }
            }
        }
    }
}
