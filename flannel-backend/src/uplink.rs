//! The interface and the addresses that peers are reached from.

mod finder;
mod uplink_watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::{NetworkConfig, UnusableAddress};
use flannel_netlink::iface::{Interface, PatternError, Selector};
use ipnetwork::IpNetwork;

pub use self::{finder::UplinkFinder, uplink_watch::UplinkWatch};

/// How a node comes to its uplink, as flannel's options have it.
///
/// The names are tried in order, then the patterns, then the way to an address; the first that fits is taken. With none of
/// them it is the interface that has the public address, and else that of the default route.
#[derive(Clone, Debug, Default)]
pub struct UplinkOptions {
    /// Interfaces by name or by address.
    pub names: Vec<String>,
    /// Interfaces by regular expressions on addresses, then on names.
    pub patterns: Vec<String>,
    /// The interface that leads to this address.
    pub can_reach: Option<IpAddr>,
    /// The IPv4 address that peers use. If the chosen interface has it, packets to peers come from it.
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// Options that lead to no uplink.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UplinkOptionsError {
    /// One of the patterns is not a regular expression.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Peers could not reach this node at the public address.
    #[error(transparent)]
    PublicAddress(#[from] UnusableAddress),
}

/// What a node uses to reach its peers.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Uplink {
    /// The interface with its own addresses, of the families that the network has.
    pub interface: Interface,
    /// The IPv4 address that peers use; `None` if the network has no IPv4.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address that peers use; `None` if the network has no IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
}

impl Uplink {
    /// The first public address, IPv4 before IPv6.
    pub fn address(&self) -> Option<IpAddr> {
        self.public_ip.map(IpAddr::V4).or_else(|| self.public_ipv6.map(IpAddr::V6))
    }

    /// The first of the interface's and of the public addresses that lies in a subnet that nodes may get, with the network's block.
    /// Leases may cover the link between the hosts then.
    pub fn inside_of(&self, config: &NetworkConfig) -> Option<(IpAddr, IpNetwork)> {
        let Interface { v4, v6, .. } = self.interface;
        let addresses = [v4.map(IpAddr::V4), self.public_ip.map(IpAddr::V4)]
            .into_iter()
            .chain([v6.map(IpAddr::V6), self.public_ipv6.map(IpAddr::V6)]);
        addresses.flatten().find_map(|address| Some((address, config.pod_network(address)?)))
    }
}

fn selectors(options: &UplinkOptions) -> Result<Vec<Selector>, PatternError> {
    let named = options.names.iter().map(|name| match name.parse() {
        Ok(IpAddr::V4(v4)) => Selector::Address { v4: Some(v4), v6: None },
        Ok(IpAddr::V6(v6)) => Selector::Address { v4: None, v6: Some(v6) },
        Err(_) => Selector::Name(name.clone()),
    });
    let mut selectors: Vec<_> = named.collect();
    for pattern in &options.patterns {
        selectors.push(Selector::pattern(pattern)?);
    }
    selectors.extend(options.can_reach.map(Selector::CanReach));
    if selectors.is_empty() {
        let (v4, v6) = (options.public_ip, options.public_ipv6);
        if v4.is_some() || v6.is_some() {
            selectors.push(Selector::Address { v4, v6 });
        }
        // A public address that is not ours belongs to a router in front of us.
        selectors.push(Selector::DefaultRoute);
    }
    Ok(selectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(options: &UplinkOptions) -> Vec<String> {
        selectors(options).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn selectors_are_tried_in_flannels_order() {
        let options = UplinkOptions {
            names: vec!["192.0.2.1".into(), "eth1".into()],
            patterns: vec!["^10\\.".into()],
            can_reach: Some([198, 51, 100, 1].into()),
            public_ip: Some([203, 0, 113, 1].into()),
            public_ipv6: None,
        };
        let expected = [
            "address 192.0.2.1",
            "name \"eth1\"",
            "expression \"^10\\\\.\"",
            "way to 198.51.100.1",
        ];
        assert_eq!(shown(&options), expected);
    }

    #[test]
    fn without_options_the_public_address_and_then_the_default_route_decide() {
        assert_eq!(shown(&UplinkOptions::default()), ["default route"]);
        let public_ip = Some([203, 0, 113, 1].into());
        let options = UplinkOptions { public_ip, ..UplinkOptions::default() };
        assert_eq!(shown(&options), ["address 203.0.113.1", "default route"]);
    }

    #[test]
    fn a_pattern_that_is_none_is_an_error() {
        let options = UplinkOptions { patterns: vec!["(".into()], ..UplinkOptions::default() };
        let error = selectors(&options).unwrap_err();
        assert_eq!(error.to_string(), "\"(\" is not a regular expression");
    }
}
