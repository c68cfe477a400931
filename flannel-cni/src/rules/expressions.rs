//! Parts of rules, byte for byte as nft compiles them.

use flannel_firewall::nftables::{Expression, Family};
use flannel_netlink::state::MacAddress;
use ipnetwork::IpNetwork;

use super::{family_of, host, offsets};

/// Ends the rule unless the packet has this source and destination; `not_to` unless it has another destination.
pub(crate) fn with_address(
    from: Option<IpNetwork>,
    to: Option<IpNetwork>,
    not_to: bool,
) -> Vec<Expression> {
    let compare = |address: Option<IpNetwork>, source: bool, negated| {
        let compared = address.map(|address| {
            let (source_offset, destination_offset) = offsets(address);
            let offset = if source { source_offset } else { destination_offset };
            Expression::compare_address(offset, address, negated)
        });
        compared.unwrap_or_default()
    };
    [compare(from, true, false), compare(to, false, not_to)].concat()
}

/// Ends the rule unless the packet is of this family; for tables of both.
pub(crate) fn of_family(family: Family) -> Vec<Expression> {
    let load = Expression::Meta { register: Expression::REGISTER, key: Expression::META_FAMILY };
    vec![load, Expression::compare(false, vec![family.0])]
}

/// Ends the rule unless the packet is of this protocol.
pub(crate) fn compare_protocol(protocol: u8) -> Vec<Expression> {
    let load = Expression::Meta { register: Expression::REGISTER, key: Expression::META_PROTOCOL };
    vec![load, Expression::compare(false, vec![protocol])]
}

/// Ends the rule unless the packet came in by this device.
pub(crate) fn compare_input(name: &str) -> Vec<Expression> {
    let mut text = name.as_bytes().to_vec();
    text.resize(IFNAMSIZ, 0);
    let load = Expression::Meta { register: Expression::REGISTER, key: Expression::META_INPUT };
    vec![load, Expression::compare(false, text)]
}

/// Ends the rule unless the packet is from this Ethernet address.
pub(crate) fn compare_source_mac(mac: MacAddress) -> Vec<Expression> {
    let load = Expression::Payload {
        register: Expression::REGISTER,
        base: Expression::LINK_HEADER,
        offset: 6,
        length: 6,
    };
    vec![load, Expression::compare(false, mac.octets().to_vec())]
}

/// Ends the rule unless the packet goes to this port.
pub(crate) fn compare_port(port: u16) -> Vec<Expression> {
    let load = Expression::Payload {
        register: Expression::REGISTER,
        base: Expression::TRANSPORT_HEADER,
        offset: 2,
        length: 2,
    };
    vec![load, Expression::compare(false, port.to_be_bytes().to_vec())]
}

/// Ends the rule unless the packet goes to an address of the node.
pub(crate) fn local_destination() -> Vec<Expression> {
    let load = Expression::Fib {
        register: Expression::REGISTER,
        result: NFT_FIB_RESULT_ADDRTYPE,
        flags: NFTA_FIB_F_DADDR,
    };
    vec![load, Expression::compare(false, RTN_LOCAL.to_ne_bytes().to_vec())]
}

/// Sends the packet to another address and port.
pub(crate) fn translate(address: IpNetwork, port: u16) -> Vec<Expression> {
    let octets = match host(address) {
        IpNetwork::V4(v4) => v4.ip().octets().to_vec(),
        IpNetwork::V6(v6) => v6.ip().octets().to_vec(),
    };
    let port = port.to_be_bytes().to_vec();
    vec![
        Expression::Immediate { register: Expression::REGISTER, value: octets },
        Expression::Immediate { register: SECOND_REGISTER, value: port },
        Expression::DestinationNat {
            family: family_of(address).0.into(),
            address: Expression::REGISTER,
            port: SECOND_REGISTER,
        },
    ]
}

// linux/if.h, linux/netfilter/nf_tables.h, linux/rtnetlink.h
const IFNAMSIZ: usize = 16;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
const RTN_LOCAL: u32 = 2;
/// Behind the first, which holds 16 bytes.
const SECOND_REGISTER: u32 = 2;
