//! What one peer needs: a route to each of its blocks, through its public address.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_backend::{PeerPlan, route_mtu};
use flannel_core::{Family, Lease, PeerFault, Subnet};
use flannel_netlink::state::Route;
use ipnetwork::IpNetwork;

/// All that plans depend on, apart from the peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Facts {
    /// Our own subnet.
    pub(crate) own: Subnet,
    /// The device that leads to peers.
    pub(crate) link: u32,
    pub(crate) protocol: u8,
    pub(crate) table: u32,
    /// How large packets may be, bytes, if that is less than what the device takes.
    pub(crate) mtu: Option<u32>,
    /// The same for packets to a gateway.
    pub(crate) limits: BTreeMap<IpAddr, u32>,
}

impl Facts {
    /// What `peer` needs on this node. Families that the node does not have are not looked at.
    pub(crate) fn plan(&self, peer: &Lease) -> PeerPlan {
        let mut plan = PeerPlan::default();
        // Case matters, as it does to flannel on Linux.
        if peer.attrs.backend_type != super::KIND {
            let theirs = peer.attrs.backend_type.clone().into_owned();
            plan.faults.push(PeerFault::OtherBackend { ours: super::KIND.into(), theirs });
            return plan;
        }
        let own = self.own;
        let ipv4 = own.ipv4().and_then(|_| peer.subnet.ipv4()).map(IpNetwork::V4);
        let ipv6 = own.ipv6().and_then(|_| peer.subnet.ipv6()).map(IpNetwork::V6);
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
                    let limit = self.limits.get(&gateway).copied();
                    let limit = limit.into_iter().chain(self.mtu).min();
                    route.mtu = limit.and_then(|limit| route_mtu(&block, limit, 0, u32::MAX));
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

    fn plan(own: &str, peer: &Lease, mtu: Option<u32>, limits: &[(IpAddr, u32)]) -> PeerPlan {
        let limits = limits.iter().copied().collect();
        let own = own.parse().unwrap();
        Facts { own, link: 7, protocol: 99, table: 254, mtu, limits }.plan(peer)
    }

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
        let plan = |own| plan(own, &dual, None, &[]).objects;
        assert_eq!(plan("10.3.1.0-24&fd00:1::-64"), [v4, v6]);
        assert_eq!(plan("10.3.1.0-24"), [v4]);
        assert_eq!(plan("fd00:1::-64"), [v6]);
    }

    #[test]
    fn a_peer_without_an_address_is_named_and_its_other_family_served() {
        let mut peer = lease("10.3.2.0-24&fd00:2::-64");
        peer.attrs.public_ip = None;
        let plan = plan("10.3.1.0-24&fd00:1::-64", &peer, None, &[]);
        assert_eq!(plan.faults, [PeerFault::NoAddress { family: Family::Ipv4 }]);
        assert_eq!(plan.objects, [route("fd00:2::/64", "2001:db8::2")]);
    }

    #[test]
    fn a_way_that_takes_less_makes_a_route_that_says_so() {
        let dual = lease("10.3.2.0-24&fd00:2::-64");
        let mtus = |mtu, limits: &[(IpAddr, u32)]| {
            let objects = plan("10.3.1.0-24&fd00:1::-64", &dual, mtu, limits).objects;
            let mtu = |object: &Object| match object {
                Object::Route(route) => route.mtu,
                _ => None,
            };
            objects.iter().map(mtu).collect::<Vec<_>>()
        };
        let limit = ([192, 0, 2, 2].into(), 1400);
        assert_eq!(mtus(None, &[limit]), [Some(1400), None]);
        assert_eq!(mtus(Some(1350), &[limit]), [Some(1350), Some(1350)]);
        assert_eq!(mtus(Some(1450), &[limit]), [Some(1400), Some(1450)]);
        assert_eq!(mtus(Some(1000), &[]), [Some(1000), None], "less than IPv6 needs");
    }

    #[test]
    fn a_peer_of_another_backend_is_skipped() {
        for theirs in ["vxlan", "", "Host-GW"] {
            let mut peer = lease("10.3.2.0-24");
            peer.attrs.backend_type = theirs.into();
            let plan = plan("10.3.1.0-24", &peer, None, &[]);
            assert_eq!(plan.objects, []);
            let theirs = theirs.into();
            assert_eq!(plan.faults, [PeerFault::OtherBackend { ours: "host-gw".into(), theirs }]);
        }
    }
}
