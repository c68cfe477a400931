//! What the addresses of a container mean for the bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::bridge_keys::Bridge;
use crate::protocol::{AddResult, Ip, Route};

/// Completes a result with gateways and default routes, and returns the addresses that the bridge has to have.
pub(super) fn complete(
    result: &mut AddResult,
    bridge: &Bridge,
    interface: usize,
) -> Vec<IpNetwork> {
    let mut of_bridge = Vec::new();
    let AddResult { ips, routes, .. } = result;
    for ip in ips {
        ip.interface = Some(interface);
        if bridge.is_gateway && ip.gateway.is_none() {
            ip.gateway = Some(first_of(ip.address));
        }
        if bridge.is_default_gateway {
            let default = default_of(ip);
            let found = routes.iter().any(|it| it.dst == default && it.gw.is_some());
            // One for each family is enough.
            if !found {
                routes.push(Route::new(default, ip.gateway));
            }
        }
        if let Some(gateway) = ip.gateway.filter(|_| bridge.is_gateway) {
            of_bridge.extend(IpNetwork::new(gateway, ip.address.prefix()));
        }
    }
    of_bridge
}

/// The route with the gateway that it goes through if it does not say: that of the container's first address of its family.
pub(super) fn with_gateway(route: &Route, ips: &[Ip]) -> Route {
    let gateways = ips.iter().filter_map(|ip| ip.gateway);
    let first = gateways.into_iter().find(|it| it.is_ipv4() == route.dst.is_ipv4());
    Route { gw: route.gw.or(first), ..route.clone() }
}

fn first_of(address: IpNetwork) -> IpAddr {
    match address {
        IpNetwork::V4(v4) => Ipv4Addr::from(u32::from(v4.network()).wrapping_add(1)).into(),
        IpNetwork::V6(v6) => Ipv6Addr::from(u128::from(v6.network()).wrapping_add(1)).into(),
    }
}

fn default_of(ip: &Ip) -> IpNetwork {
    let any: IpAddr = match ip.address {
        IpNetwork::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpNetwork::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(any, 0).expect("every family has a prefix of 0")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{Arguments, Config};

    fn complete_for(keys: &str, routes: Vec<Route>) -> (AddResult, Vec<String>) {
        let config = json!({"name": "n", keys: true}).to_string();
        let config = Config::parse(config.as_bytes()).unwrap();
        let bridge = Bridge::read(&config, &Arguments::default()).unwrap();
        let ip = |address: &str| Ip {
            interface: None,
            address: address.parse().unwrap(),
            gateway: None,
        };
        let ips = vec![ip("10.1.2.5/24"), ip("fd00::5/64")];
        let mut result = AddResult { ips, routes, ..AddResult::default() };
        let of_bridge = complete(&mut result, &bridge, 2);
        (result, of_bridge.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_gateway_is_the_first_address_and_the_bridges() {
        let (result, of_bridge) = complete_for("isGateway", Vec::new());
        assert_eq!(of_bridge, ["10.1.2.1/24", "fd00::1/64"]);
        assert!(result.routes.is_empty());
        assert!(result.ips.iter().all(|ip| ip.interface == Some(2) && ip.gateway.is_some()));
    }

    #[test]
    fn a_default_route_is_added_unless_there_is_one_with_a_gateway() {
        let given = Route::new("::/0".parse().unwrap(), Some("fd00::9".parse().unwrap()));
        let (result, _) = complete_for("isDefaultGateway", vec![given.clone()]);
        let added = Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.2.1".parse().unwrap()));
        assert_eq!(result.routes, [given, added]);
    }

    #[test]
    fn without_a_gateway_nothing_is_added() {
        let (result, of_bridge) = complete_for("x", Vec::new());
        assert!(of_bridge.is_empty() && result.ips.iter().all(|ip| ip.gateway.is_none()));
    }

    #[test]
    fn a_route_goes_through_the_gateway_of_its_family() {
        let (result, _) = complete_for("isGateway", Vec::new());
        let gateway =
            |dst: &str| with_gateway(&Route::new(dst.parse().unwrap(), None), &result.ips).gw;
        assert_eq!(gateway("10.0.0.0/8"), Some("10.1.2.1".parse().unwrap()));
        assert_eq!(gateway("fd01::/16"), Some("fd00::1".parse().unwrap()));
    }
}
