//! The networks that are measured, and where everything in them is.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use flannel_core::NetworkConfig;
use flannel_testbed::Blocks;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde_json::{Value, json};

use crate::args::{Family, StoreKind};

/// A network as a benchmark wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) store: StoreKind,
    /// As on the command line.
    pub(crate) backend: &'a str,
    pub(crate) family: Family,
    /// How many peers there are that nobody runs; of IPv4 alone.
    pub(crate) peers: u32,
}

/// Backends with options, by the names that they have on the command line. Every other name is that of a type without any.
const VARIANTS: [(&str, &str); 4] = [
    ("udp-ebpf", r#"{"Type":"udp","Engine":"ebpf"}"#),
    ("udp-userspace", r#"{"Type":"udp","Engine":"userspace"}"#),
    ("vxlan-direct", r#"{"Type":"vxlan","DirectRouting":true}"#),
    ("wireguard-userspace", r#"{"Type":"wireguard","Engine":"userspace"}"#),
];

/// The backend's part of the network's configuration.
fn backend_config(name: &str) -> Value {
    let variant = VARIANTS.iter().find(|(variant, _)| *variant == name);
    match variant {
        Some((_, json)) => serde_json::from_str(json).expect("it is written above"),
        None => json!({ "Type": name }),
    }
}

/// The type of a backend.
pub(crate) fn kind(name: &str) -> String {
    backend_config(name)["Type"].as_str().unwrap_or_default().into()
}

/// The cluster's network: room for 65,000 subnets.
pub(crate) fn network(backend: &str, family: Family) -> Result<NetworkConfig> {
    network_with(backend_config(backend), family)
}

/// The same with the backend's part of the configuration as it is to be written.
pub(crate) fn network_with(backend: Value, family: Family) -> Result<NetworkConfig> {
    let config = match family {
        Family::V4 => json!({
            "Network": NETWORK.to_string(),
            "SubnetLen": 24,
            "Backend": backend,
        }),
        Family::V6 => json!({
            "EnableIPv4": false,
            "EnableIPv6": true,
            "IPv6Network": NETWORK_V6.to_string(),
            "IPv6SubnetLen": 64,
            "Backend": backend,
        }),
    };
    Ok(config.to_string().parse()?)
}

/// The blocks of peers number 0 to `count` - 1.
pub(crate) fn blocks(count: u32) -> impl Iterator<Item = IpNetwork> {
    (0..count).map(|number| IpNetwork::V4(block(number)))
}

/// The block of a peer. The first 256 subnets are left to real nodes.
pub(crate) fn block(number: u32) -> Ipv4Network {
    let address = u32::from(NETWORK.ip()) + ((number + 256) << 8);
    Ipv4Network::new(address.into(), 24).expect("24 is a prefix length")
}

/// The block of a host's pods where no node chooses one.
pub(crate) fn own_block(number: u8, family: Family) -> Blocks {
    match family {
        Family::V4 => {
            let address = u32::from(NETWORK.ip()) + ((u32::from(number) + 1) << 8);
            Ipv4Network::new(address.into(), 24).expect("24 is a prefix length").into()
        }
        Family::V6 => {
            let address = u128::from(NETWORK_V6.ip()) + ((u128::from(number) + 1) << 64);
            Ipv6Network::new(address.into(), 64).expect("64 is a prefix length").into()
        }
    }
}

/// Checks that there are addresses for so many peers.
pub(crate) fn check_count(count: u32) -> Result<()> {
    ensure!(count <= MOST_PEERS, "{count} peers are too many, expected at most {MOST_PEERS}");
    Ok(())
}

/// The address of a peer on the underlay. The first 4096 addresses are left to real hosts.
pub(crate) fn address(number: u32) -> Ipv4Addr {
    (u32::from(UNDERLAY.ip()) + 4096 + number).into()
}

/// The hosts' link.
pub(crate) fn underlay(family: Family) -> Blocks {
    match family {
        Family::V4 => UNDERLAY.into(),
        Family::V6 => UNDERLAY_V6.into(),
    }
}

/// The range for benchmarks of RFC 2544, so that the addresses of all peers are on one link.
const UNDERLAY: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(198, 18, 0, 0), 15) {
    Some(block) => block,
    None => panic!("15 is a prefix length"),
};

/// The range for benchmarks of RFC 5180.
const UNDERLAY_V6: Ipv6Network =
    match Ipv6Network::new_checked(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 64) {
        Some(block) => block,
        None => panic!("64 is a prefix length"),
    };

const NETWORK: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(10, 0, 0, 0), 8) {
    Some(block) => block,
    None => panic!("8 is a prefix length"),
};

const NETWORK_V6: Ipv6Network =
    match Ipv6Network::new_checked(Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0), 48) {
        Some(block) => block,
        None => panic!("48 is a prefix length"),
    };

/// Some of the 65,536 subnets are left over for real nodes.
const MOST_PEERS: u32 = 65_000;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn peers_share_neither_blocks_nor_addresses() {
        let last = MOST_PEERS - 1;
        let all = |count: usize| assert_eq!(count, MOST_PEERS as usize);
        all((0..MOST_PEERS).map(address).collect::<HashSet<_>>().len());
        all((0..MOST_PEERS).map(block).collect::<HashSet<_>>().len());
        assert_eq!(block(0).to_string(), "10.1.0.0/24");
        assert_eq!(block(last).to_string(), "10.254.231.0/24");
        assert!(UNDERLAY.contains(address(0)));
        assert!(UNDERLAY.contains(address(last)) && address(last) < UNDERLAY.broadcast());
        assert!(check_count(MOST_PEERS).is_ok() && check_count(MOST_PEERS + 1).is_err());
    }

    #[test]
    fn every_variant_is_a_network_of_both_families() {
        for (name, _) in VARIANTS.into_iter().chain([("host-gw", "")]) {
            for family in [Family::V4, Family::V6] {
                assert_eq!(network(name, family).unwrap().backend().kind(), kind(name));
            }
        }
        assert_eq!(own_block(1, Family::V4).to_string(), "10.0.2.0/24");
        assert_eq!(own_block(1, Family::V6).to_string(), "fd00:10:0:2::/64");
    }
}
