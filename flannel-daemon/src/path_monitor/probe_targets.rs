//! Whom to ask: a plain function of what the node knows.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use flannel_core::{Lease, NetworkConfig, Peers, RoutingMode, Subnet, Transport};
use flannel_netlink::iface::Interface;
use flannel_probe::{End, Target, Targets};

use crate::explain::Tunnel;

/// What peers are reached from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Card {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
    /// Bytes.
    pub(super) mtu: u32,
}

impl From<&Interface> for Card {
    fn from(interface: &Interface) -> Self {
        Self { v4: interface.v4, v6: interface.v6, mtu: interface.mtu }
    }
}

/// The peers that are served, in each family that both have, and our own ends.
pub(super) fn targets(
    config: &NetworkConfig,
    uplink: Card,
    peers: &Peers,
    transports: &BTreeMap<Subnet, Transport>,
) -> Targets {
    let end = |is_ipv4: bool| {
        let local = match is_ipv4 {
            true => uplink.v4.map(IpAddr::V4),
            false => uplink.v6.map(IpAddr::V6),
        };
        let own = block(&peers.own().subnet, is_ipv4)?;
        let tunnel = Tunnel::of(config, is_ipv4);
        let needed = tunnel.as_ref().and_then(|tunnel| tunnel.mtu).unwrap_or(uplink.mtu);
        Some(End { local: local?, overlay: tunnel.map(|_| own), needed })
    };
    let target = |peer: &Lease, is_ipv4: bool| {
        let (address, inside) = (public(peer, is_ipv4)?, block(&peer.subnet, is_ipv4)?);
        let transport = transports.get(&peer.subnet)?;
        let way = if is_ipv4 { transport.ipv4 } else { transport.ipv6 };
        let overlay = (way? == RoutingMode::Encapsulated).then_some(inside);
        Some(Target { peer: peer.subnet, address, overlay })
    };
    let families = [true, false];
    let ends = families.into_iter().filter_map(end).collect();
    let both = peers.iter().flat_map(|peer| families.map(|is_ipv4| target(peer, is_ipv4)));
    Targets::new(ends, both.flatten().collect())
}

/// The first address of a subnet, which VXLAN devices have.
fn block(subnet: &Subnet, is_ipv4: bool) -> Option<IpAddr> {
    match is_ipv4 {
        true => subnet.ipv4().map(|block| block.network().into()),
        false => subnet.ipv6().map(|block| block.network().into()),
    }
}

fn public(lease: &Lease, is_ipv4: bool) -> Option<IpAddr> {
    match is_ipv4 {
        true => lease.attrs.public_ip.map(IpAddr::V4),
        false => lease.attrs.public_ipv6.map(IpAddr::V6),
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::{LeaseAttrs, LeaseEvent};

    use super::*;

    fn lease(n: u8) -> Lease {
        let attrs = LeaseAttrs {
            public_ip: Some([192, 0, 2, n].into()),
            public_ipv6: Some(format!("2001:db8::{n}").parse().unwrap()),
            ..LeaseAttrs::default()
        };
        Lease::new(format!("10.3.{n}.0-24&fd00:0:0:{n}::-64").parse().unwrap(), attrs)
    }

    #[test]
    fn served_peers_are_asked_and_inside_of_the_tunnel_if_they_are_behind_it() {
        let config = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48",
            "Backend":{"Type":"vxlan","MTU":1400,"DirectRouting":true}}"#;
        let config: NetworkConfig = config.parse().unwrap();
        let mut peers = Peers::new(config.clone(), lease(1));
        peers.fold(LeaseEvent::reset(vec![lease(2), lease(3), lease(4)]));
        let way = |v4, v6| Transport::new(v4, v6);
        let (tunnel, direct) = (Some(RoutingMode::Encapsulated), Some(RoutingMode::Direct));
        let transports = BTreeMap::from([
            (lease(2).subnet, way(tunnel, direct)),
            (lease(3).subnet, way(direct, None)),
        ]);
        let (v4, v6) = (Some([192, 0, 2, 1].into()), Some("2001:db8::1".parse().unwrap()));
        let card = Card { v4, v6, mtu: 1500 };
        let found = targets(&config, card, &peers, &transports);

        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let end =
            |local, overlay| End { local: ip(local), overlay: Some(ip(overlay)), needed: 1400 };
        let ends = [end("192.0.2.1", "10.3.1.0"), end("2001:db8::1", "fd00:0:0:1::")];
        assert_eq!(found.ends, ends);
        let target = |n: u8, address: &str, overlay: Option<&str>| Target {
            peer: lease(n).subnet,
            address: ip(address),
            overlay: overlay.map(ip),
        };
        let expected = [
            target(2, "192.0.2.2", Some("10.3.2.0")),
            target(2, "2001:db8::2", None),
            target(3, "192.0.2.3", None),
        ];
        assert_eq!(found.peers, expected, "nobody serves the fourth");

        let config = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#.parse().unwrap();
        let found = targets(&config, Card { v6: None, ..card }, &peers, &BTreeMap::new());
        let end = End { local: ip("192.0.2.1"), overlay: None, needed: 1500 };
        assert_eq!((found.ends, found.peers), (vec![end], vec![]));
    }
}
