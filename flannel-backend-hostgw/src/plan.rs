//! What one peer needs: a route to each of its blocks, through its public address.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_backend::{PeerPlan, route_mtu};
use flannel_core::{Family, Lease, PeerFault};
use flannel_netlink::state::Route;
use ipnetwork::IpNetwork;

/// What all routes of a node have in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Routes {
    /// The device that leads to peers.
    pub(crate) link: u32,
    pub(crate) protocol: u8,
    pub(crate) table: u32,
}

impl Routes {
    /// What `peer` needs on the node that holds `own`. Families that the node does not have are not looked at. `limits` says how
    /// large packets to a gateway may be, bytes, where that is less than usual.
    pub(crate) fn plan(
        &self,
        own: &Lease,
        peer: &Lease,
        limits: &BTreeMap<IpAddr, u32>,
    ) -> PeerPlan {
        let mut plan = PeerPlan::default();
        // Case matters, as it does to flannel on Linux.
        if peer.attrs.backend_type != super::KIND {
            let theirs = peer.attrs.backend_type.clone().into_owned();
            plan.faults.push(PeerFault::OtherBackend { ours: super::KIND.into(), theirs });
            return plan;
        }
        let ipv4 = own.subnet.ipv4().and_then(|_| peer.subnet.ipv4()).map(IpNetwork::V4);
        let ipv6 = own.subnet.ipv6().and_then(|_| peer.subnet.ipv6()).map(IpNetwork::V6);
        let families = [
            (Family::Ipv4, ipv4, peer.attrs.public_ip.map(IpAddr::V4)),
            (Family::Ipv6, ipv6, peer.attrs.public_ipv6.map(IpAddr::V6)),
        ];
        for (family, block, gateway) in families {
            match (block, gateway) {
                (None, _) => {}
                (Some(_), None) => plan.faults.push(PeerFault::NoAddress { family }),
                (Some(block), Some(gateway)) => {
                    let mut route =
                        Route::new(block, self.protocol).via_gateway(gateway, self.link);
                    route.table = self.table;
                    // A limit is always less than what the network card takes.
                    let limit = limits.get(&gateway);
                    route.mtu = limit.and_then(|limit| route_mtu(&block, *limit, 0, u32::MAX));
                    plan.objects.push(route.into());
                }
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::LeaseAttrs;
    use flannel_netlink::state::Object;

    use super::*;

    const ROUTES: Routes = Routes { link: 7, protocol: 99, table: 254 };

    fn lease(key: &str) -> Lease {
        let attrs = LeaseAttrs {
            public_ip: Some([192, 0, 2, 2].into()),
            public_ipv6: Some("2001:db8::2".parse().unwrap()),
            backend_type: "host-gw".into(),
            ..LeaseAttrs::default()
        };
        Lease::new(key.parse().unwrap(), attrs)
    }

    fn route(block: &str, gateway: &str) -> Object {
        Route::new(block.parse().unwrap(), 99).via_gateway(gateway.parse().unwrap(), 7).into()
    }

    #[test]
    fn each_family_that_both_have_gets_a_route_through_the_peer() {
        let dual = lease("10.3.2.0-24&fd00:2::-64");
        let v4 = route("10.3.2.0/24", "192.0.2.2");
        let v6 = route("fd00:2::/64", "2001:db8::2");
        let plan = |own| ROUTES.plan(&lease(own), &dual, &BTreeMap::new()).objects;
        assert_eq!(plan("10.3.1.0-24&fd00:1::-64"), [v4, v6]);
        assert_eq!(plan("10.3.1.0-24"), [v4]);
        assert_eq!(plan("fd00:1::-64"), [v6]);
    }

    #[test]
    fn a_peer_without_an_address_is_named_and_its_other_family_served() {
        let mut peer = lease("10.3.2.0-24&fd00:2::-64");
        peer.attrs.public_ip = None;
        let plan = ROUTES.plan(&lease("10.3.1.0-24&fd00:1::-64"), &peer, &BTreeMap::new());
        assert_eq!(plan.faults, [PeerFault::NoAddress { family: Family::Ipv4 }]);
        assert_eq!(plan.objects, [route("fd00:2::/64", "2001:db8::2")]);
    }

    #[test]
    fn a_way_that_takes_less_makes_a_route_that_says_so() {
        let dual = lease("10.3.2.0-24&fd00:2::-64");
        let limits = BTreeMap::from([([192, 0, 2, 2].into(), 1400)]);
        let plan = ROUTES.plan(&lease("10.3.1.0-24&fd00:1::-64"), &dual, &limits);
        let mtus: Vec<_> = plan
            .objects
            .iter()
            .map(|object| match object {
                Object::Route(route) => route.mtu,
                _ => None,
            })
            .collect();
        assert_eq!(mtus, [Some(1400), None]);
    }

    #[test]
    fn a_peer_of_another_backend_is_skipped() {
        for theirs in ["vxlan", "", "Host-GW"] {
            let mut peer = lease("10.3.2.0-24");
            peer.attrs.backend_type = theirs.into();
            let plan = ROUTES.plan(&lease("10.3.1.0-24"), &peer, &BTreeMap::new());
            assert_eq!(plan.objects, []);
            let theirs = theirs.into();
            assert_eq!(plan.faults, [PeerFault::OtherBackend { ours: "host-gw".into(), theirs }]);
        }
    }
}
