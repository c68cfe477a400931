//! The maps' keys and values as the programs read them: see bpf/udp.bpf.c.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::config::SourceCheck;

/// A value of `endpoints`.
pub(super) type Endpoint = [u8; 24];
/// A value of `peers`.
pub(super) type Peer = [u8; 64];

/// What the programs know about this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Config {
    /// The index of the tunnel device.
    pub(super) tunnel: u32,
    pub(super) source_check: SourceCheck,
    pub(super) has_link_header: bool,
    pub(super) path_mtu_discovery: bool,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
    pub(super) port: u16,
}

impl Config {
    pub(super) fn bytes(&self) -> [u8; 32] {
        let flags = [
            (CHECK_PEER, self.source_check != SourceCheck::None),
            (CHECK_SUBNET, self.source_check == SourceCheck::Subnet),
            (NO_LINK_HEADER, !self.has_link_header),
            (PATH_MTU_DISCOVERY, self.path_mtu_discovery),
        ];
        let flags: u32 =
            flags.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag).sum();
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&self.tunnel.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..24].copy_from_slice(&self.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        bytes[24..28].copy_from_slice(&self.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes[28..30].copy_from_slice(&self.port.to_be_bytes());
        bytes
    }
}

/// An address, IPv4 ones as ::ffff:a.b.c.d.
pub(super) fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The length and the address of a block.
pub(super) fn prefix(block: IpNetwork) -> (u32, [u8; 16]) {
    let mapped = if block.is_ipv4() { 96 } else { 0 };
    (mapped + u32::from(block.prefix()), address(block.network()))
}

/// Where a block is reached, and whether the peer decapsulates in its kernel.
pub(super) fn endpoint(at: SocketAddr, in_kernel: bool) -> Endpoint {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&address(at.ip()));
    bytes[16..18].copy_from_slice(&at.port().to_be_bytes());
    bytes[18..20].copy_from_slice(&u16::from(in_kernel).to_ne_bytes());
    bytes
}

const CHECK_PEER: u32 = 1;
const CHECK_SUBNET: u32 = 2;
const NO_LINK_HEADER: u32 = 4;
const PATH_MTU_DISCOVERY: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_as_on_the_wire() {
        let config = Config {
            tunnel: 7,
            source_check: SourceCheck::Subnet,
            has_link_header: true,
            path_mtu_discovery: true,
            ipv4: Some([192, 0, 2, 1].into()),
            ipv6: None,
            port: 8285,
        };
        let bytes = config.bytes();
        assert_eq!(bytes[..8], [7_u32, 1 | 2 | 8].map(u32::to_ne_bytes).concat());
        assert_eq!(bytes[24..], [192, 0, 2, 1, 0x20, 0x5d, 0, 0]);
        let (len, block) = prefix("10.3.2.7/24".parse().unwrap());
        assert_eq!((len, &block[10..]), (120, &[0xff, 0xff, 10, 3, 2, 0][..]));
        assert_eq!(prefix("fd00:2::/64".parse().unwrap()).0, 64);
        let at = endpoint("192.0.2.2:8285".parse().unwrap(), true);
        assert_eq!(
            (&at[12..18], &at[18..20]),
            (&[192, 0, 2, 2, 0x20, 0x5d][..], &1_u16.to_ne_bytes()[..])
        );
    }
}
