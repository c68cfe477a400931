//! Random objects for property tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::{
    Address, ForwardingEntry, Link, LinkKind, MacAddress, Neighbour, Nexthop, Object, Route, Via,
};

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()),
    ]
}

fn network() -> impl Strategy<Value = IpNetwork> {
    (ip(), 0_u8..=128).prop_map(|(ip, prefix)| {
        let prefix = if ip.is_ipv4() { prefix % 33 } else { prefix };
        IpNetwork::new(ip, prefix).unwrap()
    })
}

fn mac() -> impl Strategy<Value = MacAddress> {
    any::<[u8; 6]>().prop_map(MacAddress::new)
}

fn via(ipv4: bool) -> impl Strategy<Value = Via> {
    let gateway = if ipv4 {
        any::<u32>().prop_map(|bits| Via::Gateway(Ipv4Addr::from(bits).into())).boxed()
    } else {
        any::<u128>().prop_map(|bits| Via::Gateway(Ipv6Addr::from(bits).into())).boxed()
    };
    prop_oneof![Just(Via::Direct), gateway, (1_u32..).prop_map(Via::Nexthop)]
}

fn route() -> impl Strategy<Value = Route> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u8>(), any::<u8>());
    let mtu = prop::option::of(1_u32..);
    let rest = (prop::option::of(1_u32..), any::<bool>(), 0_u8..4, mtu);
    let network_and_via = network().prop_flat_map(|to| (Just(to), via(to.is_ipv4())));
    (network_and_via, numbers, rest).prop_map(
        |((destination, via), (table, metric, protocol, scope), (link, onlink, kind, mtu))| {
            let mut route = Route {
                table,
                metric,
                scope,
                link,
                onlink,
                via,
                mtu,
                ..Route::new(destination, protocol)
            };
            if let Via::Nexthop(id) = via {
                route = route.via_nexthop(id);
            }
            match kind {
                0 => route.blackhole(),
                1 => route.unreachable(),
                _ => route,
            }
        },
    )
}

/// Any object that we may write.
pub(crate) fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        (any::<u32>(), network()).prop_map(|(link, address)| Address::new(link, address).into()),
        (any::<u32>(), mac(), prop::option::of(ip()), prop::option::of(any::<u16>())).prop_map(
            |(link, mac, remote, port)| {
                ForwardingEntry { link, mac, remote, port, permanent: true }.into()
            }
        ),
        (any::<u32>(), ip(), prop::option::of(mac())).prop_map(|(link, address, mac)| {
            Neighbour { link, address, mac, permanent: true }.into()
        }),
        (any::<u32>(), any::<u32>(), ip(), any::<u8>(), any::<bool>()).prop_map(
            |(id, link, gateway, protocol, onlink)| {
                let mut nexthop = Nexthop::new(id, link, gateway, protocol);
                nexthop.onlink = onlink;
                nexthop.into()
            }
        ),
        route().prop_map(Object::Route),
    ]
}

/// A device that is up.
pub(crate) fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: LinkKind::Veth,
        mac: Some("0e:00:00:00:00:01".parse().unwrap()),
        mtu: 1500,
        queue: 0,
        up: true,
        running: true,
        loopback: false,
        controller: None,
        parent: None,
        link_local: true,
    }
}
