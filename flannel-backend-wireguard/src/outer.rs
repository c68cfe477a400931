//! Between which addresses and ports the packets of two nodes go, for who looks at rules that may be in their way.

use std::net::{IpAddr, SocketAddr};

use flannel_core::{Family, LeaseAttrs, NetworkConfig};
use flannel_netlink::wireguard::PublicKey;

use crate::{
    backend::families,
    config::Settings,
    plan::{Facts, address},
};

/// Where the encrypted packets come from and go to that carry packets of `family` from the node that published `own` to the one that
/// published `peer`. `None` if the options or a lease cannot be used.
///
/// Mode `auto` is taken to go by the addresses that our node publishes, which are its network card's unless it was told others.
pub fn outer_flow(
    config: &NetworkConfig,
    own: &LeaseAttrs,
    peer: &LeaseAttrs,
    family: Family,
) -> Option<(SocketAddr, SocketAddr)> {
    let settings = Settings::read(&config.backend().options(), families(config)).ok()?;
    let tunnels = settings.tunnels();
    let tunnel = tunnels.iter().find(|tunnel| tunnel.families.contains(&family))?.clone();
    let local = (own.public_ip, own.public_ipv6);
    let facts = Facts { settings, tunnels, own_key: PublicKey::new([0; 32]), local };
    let to = facts.endpoint(peer, &tunnel, *tunnel.families.last()?).ok()?;
    let over = match to.ip() {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    };
    Some((SocketAddr::new(address(own, over)?, tunnel.port), to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease_data;

    fn attrs(n: u8, ports: [u16; 2]) -> LeaseAttrs {
        let data = |port| Some(lease_data::print(PublicKey::new([n; 32]), port));
        LeaseAttrs {
            public_ip: Some([192, 0, 2, n].into()),
            public_ipv6: Some(format!("2001:db8::{n}").parse().unwrap()),
            backend_type: crate::KIND.into(),
            backend_data: data(ports[0]),
            backend_v6_data: data(ports[1]),
            second: None,
        }
    }

    #[test]
    fn packets_go_from_our_port_to_the_one_that_the_peer_publishes() {
        let (own, peer) = (attrs(1, [7, 8]), attrs(2, [51820, 51821]));
        for (mode, family, from, to) in [
            ("separate", Family::Ipv4, "192.0.2.1:7", "192.0.2.2:51820"),
            ("separate", Family::Ipv6, "[2001:db8::1]:8", "[2001:db8::2]:51821"),
            ("ipv6", Family::Ipv4, "[2001:db8::1]:7", "[2001:db8::2]:51821"),
            ("auto", Family::Ipv6, "192.0.2.1:7", "192.0.2.2:51820"),
        ] {
            let backend = format!(
                r#"{{"Type":"wireguard","Mode":"{mode}","ListenPort":7,"ListenPortV6":8}}"#
            );
            let config = format!(
                r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:3::/48","Backend":{backend}}}"#
            );
            let flow = outer_flow(&config.parse().unwrap(), &own, &peer, family);
            let expected = (from.parse().unwrap(), to.parse().unwrap());
            assert_eq!(flow, Some(expected), "{mode} {family}");
        }
    }
}
