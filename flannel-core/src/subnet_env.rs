//! `subnet.env`: what a node tells the CNI plugin, Docker and its own successor.

use std::fmt;

use ipnetwork::{Ipv4Network, Ipv6Network};

use crate::{
    cidr::{Cidr, parse_cidr},
    config::NetworkConfig,
    subnet::Subnet,
};

/// The content of `subnet.env`.
///
/// [`fmt::Display`] prints flannel's file to the byte: these lines in this order, each ended by a newline, families that are
/// off left out. [`parse`](Self::parse) reads what any version of flannel or an operator wrote.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SubnetEnv {
    /// The cluster's IPv4 block.
    pub network: Option<Ipv4Network>,
    /// The node's IPv4 block; the file shows its first host address.
    pub subnet: Option<Ipv4Network>,
    /// The cluster's IPv6 block.
    pub ipv6_network: Option<Ipv6Network>,
    /// The node's IPv6 block; the file shows its first host address.
    pub ipv6_subnet: Option<Ipv6Network>,
    /// The largest packet that a pod may send, in bytes.
    pub mtu: Option<u32>,
    /// Whether this node masquerades traffic that leaves the network.
    pub ip_masq: Option<bool>,
}

impl SubnetEnv {
    /// What the node that holds `subnet` has to say.
    pub fn new(config: &NetworkConfig, subnet: &Subnet, mtu: u32, ip_masq: bool) -> Self {
        Self {
            network: config.ipv4().map(|range| range.network()),
            subnet: subnet.ipv4(),
            ipv6_network: config.ipv6().map(|range| range.network()),
            ipv6_subnet: subnet.ipv6(),
            mtu: Some(mtu),
            ip_masq: Some(ip_masq),
        }
    }

    /// Reads a file in the syntax that flannel's reader takes: `KEY=VALUE` lines, perhaps with `export`, quotes and `#`
    /// comments. What cannot be read counts as absent, and so does a list with more or less than one block that can.
    pub fn parse(text: &str) -> Self {
        let mut env = Self::default();
        for line in text.lines() {
            let line = line.trim();
            let line = line.strip_prefix("export ").map_or(line, str::trim_start);
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = unquoted(value);
            match key.trim_end() {
                "FLANNEL_NETWORK" => env.network = only_block(value, |a| a.parse().ok()),
                "FLANNEL_SUBNET" => env.subnet = only_block(value, |a| a.parse().ok()),
                "FLANNEL_IPV6_NETWORK" => env.ipv6_network = only_block(value, |a| a.parse().ok()),
                "FLANNEL_IPV6_SUBNET" => env.ipv6_subnet = only_block(value, |a| a.parse().ok()),
                "FLANNEL_MTU" => env.mtu = value.parse().ok(),
                "FLANNEL_IPMASQ" => env.ip_masq = value.parse().ok(),
                _ => {}
            }
        }
        env
    }

    /// The subnet that the writer of the file held: a hint, no claim.
    pub fn held(&self) -> Option<Subnet> {
        Subnet::new(self.subnet, self.ipv6_subnet)
    }
}

impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Mirrors WriteSubnetFile in pkg/subnet/subnet.go at cdf76059.
        if let (Some(network), Some(subnet)) = (self.network, self.subnet) {
            writeln!(f, "FLANNEL_NETWORK={network}")?;
            writeln!(f, "FLANNEL_SUBNET={}", first_host(subnet))?;
        }
        if let (Some(network), Some(subnet)) = (self.ipv6_network, self.ipv6_subnet) {
            writeln!(f, "FLANNEL_IPV6_NETWORK={network}")?;
            writeln!(f, "FLANNEL_IPV6_SUBNET={}", first_host(subnet))?;
        }
        if let Some(mtu) = self.mtu {
            writeln!(f, "FLANNEL_MTU={mtu}")?;
        }
        if let Some(ip_masq) = self.ip_masq {
            writeln!(f, "FLANNEL_IPMASQ={ip_masq}")?;
        }
        Ok(())
    }
}

/// The block with its address after the first, as flannel writes it. A block of one address has no other.
fn first_host<C: Cidr>(block: C) -> String {
    let next = u128::from(block.prefix_len() < C::BITS);
    format!("{}/{}", C::address(block.bits() + next), block.prefix_len())
}

fn only_block<C: Cidr>(
    list: &str,
    address: impl Fn(&str) -> Option<C::Address> + Copy,
) -> Option<C> {
    let mut blocks = list.split(',').filter_map(|text| parse_cidr(text.trim(), address));
    blocks.next().filter(|_| blocks.next().is_none())
}

/// The value of an assignment without quotes, or without what follows ` #` if there are none.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    for quote in ['"', '\''] {
        if let Some((inner, _)) = value.strip_prefix(quote).and_then(|rest| rest.split_once(quote))
        {
            return inner;
        }
    }
    value.split_once(" #").map_or(value, |(value, _)| value.trim_end())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DUAL: &str = "\
FLANNEL_NETWORK=10.42.0.0/16
FLANNEL_SUBNET=10.42.7.1/24
FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
FLANNEL_IPV6_SUBNET=2001:cafe:42:7::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
";

    #[test]
    fn the_file_is_flannels_to_the_byte() {
        let config: NetworkConfig =
            r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56"}"#
                .parse()
                .unwrap();
        let subnet = "10.42.7.0-24&2001:cafe:42:7::-64".parse().unwrap();
        assert_eq!(SubnetEnv::new(&config, &subnet, 1450, true).to_string(), DUAL);
        assert_eq!(SubnetEnv::parse(DUAL).held(), Some(subnet));

        let config: NetworkConfig = r#"{"Network":"10.42.0.0/16"}"#.parse().unwrap();
        let subnet = "10.42.7.0-24".parse().unwrap();
        let expected = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n";
        assert_eq!(SubnetEnv::new(&config, &subnet, 1500, false).to_string(), expected);
    }

    #[test]
    fn what_people_and_other_versions_wrote_is_read() {
        let text = "# written by hand\nexport FLANNEL_SUBNET=\"10.5.52.1/24\"\n FLANNEL_MTU = 1400 # outer\nFLANNEL_IPMASQ='true'\nJUNK\n";
        let env = SubnetEnv::parse(text);
        assert_eq!(env.held(), Some("10.5.52.0-24".parse().unwrap()));
        assert_eq!((env.mtu, env.ip_masq), (Some(1400), Some(true)));
    }

    #[test]
    fn the_address_shown_is_inside_of_the_subnet() {
        for (block, shown) in [
            ("10.42.7.0/24", "10.42.7.1/24"),
            ("10.42.7.8/31", "10.42.7.9/31"),
            ("10.42.7.1/32", "10.42.7.1/32"),
            ("255.255.255.255/32", "255.255.255.255/32"),
        ] {
            let env = SubnetEnv {
                network: "0.0.0.0/0".parse().ok(),
                subnet: block.parse().ok(),
                ..SubnetEnv::default()
            };
            assert!(env.to_string().contains(&format!("FLANNEL_SUBNET={shown}\n")), "{env}");
            assert_eq!(SubnetEnv::parse(&env.to_string()), env);
        }
    }

    #[test]
    fn a_list_counts_only_with_exactly_one_good_block() {
        // TestReadCIDRsFromSubnetFileSkipsInvalidCIDRs in main_test.go at cdf76059, and what flannel makes of the count.
        let held = |list: &str| SubnetEnv::parse(&format!("FLANNEL_SUBNET={list}")).held();
        assert_eq!(held("not-a-cidr,10.244.1.0/24"), Some("10.244.1.0-24".parse().unwrap()));
        assert_eq!(held("10.244.1.0/24,not-a-cidr,10.244.2.0/24"), None);
        assert_eq!(held("not-a-cidr"), None);
        assert_eq!(held(""), None);
    }

    prop_compose! {
        fn env()(
            v4 in proptest::option::of((any::<u32>(), 0u8..=30)),
            v6 in proptest::option::of((any::<u128>(), 0u8..=126)),
            mtu in proptest::option::of(any::<u32>()),
            ip_masq in proptest::option::of(any::<bool>()),
        ) -> SubnetEnv {
            let v4 = v4.map(|(bits, len)| Ipv4Network::from_bits(bits.into(), len));
            let v6 = v6.map(|(bits, len)| Ipv6Network::from_bits(bits, len));
            SubnetEnv { network: v4, subnet: v4, ipv6_network: v6, ipv6_subnet: v6, mtu, ip_masq }
        }
    }

    proptest! {
        #[test]
        fn every_file_survives_printing_and_parsing(env in env()) {
            prop_assert_eq!(SubnetEnv::parse(&env.to_string()), env);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}", value in "\\PC{0,20}") {
            SubnetEnv::parse(&text);
            SubnetEnv::parse(&format!("FLANNEL_SUBNET={value}\nFLANNEL_MTU={value}"));
        }
    }
}
