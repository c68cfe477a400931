//! The Ethernet address of a new device.

use flannel_core::NodeId;
use flannel_netlink::state::MacAddress;

/// An address that depends on the node and what it is for, which is the device's name, alone: it stays the same when the device, the lease or the whole
/// machine is made anew, so peers need not be told.
pub(crate) fn derived(node: &NodeId, purpose: &str) -> MacAddress {
    // The spread of a name is uniform in all its bits; FNV-1a of the device's name tells the devices of a node apart.
    let spread = node.spread() as u64;
    let hash = purpose
        .bytes()
        .fold(spread, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let [_, _, first, rest @ ..] = hash.to_be_bytes();
    let [a, b, c, d, e] = rest;
    // Locally administered, and of one station.
    MacAddress::new([first & 0xfc | 0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_never_changes() {
        let node = "192.0.2.1".parse().unwrap();
        assert_eq!(derived(&node, "flannel.1").to_string(), "22:b4:ea:9c:87:18");
        assert_eq!(derived(&node, "flannel-v6.1").to_string(), "32:d5:3d:c7:97:05");
    }

    #[test]
    fn ten_thousand_nodes_have_different_addresses() {
        let nodes = (0..10_000_u16).flat_map(|n| {
            let [a, b] = n.to_be_bytes();
            let node: NodeId = std::net::IpAddr::from([10, 0, a, b]).into();
            [derived(&node, "flannel.1"), derived(&node, "flannel-v6.1")]
        });
        assert_eq!(nodes.collect::<BTreeSet<_>>().len(), 20_000);
    }

    proptest! {
        #[test]
        fn every_address_is_local_and_of_one_station(name in "[!-~]{1,40}", device in "[a-z.0-9]{1,15}") {
            let mac = derived(&name.parse().unwrap(), &device);
            prop_assert!(mac.is_unicast());
            prop_assert_eq!(mac.octets()[0] & 0x02, 0x02);
        }
    }
}
