//! What stands in the maps, byte by byte, as udp.bpf.c has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use ipnetwork::{Ipv4Network, Ipv6Network};

/// `struct prefix4`.
pub(super) fn prefix4(block: Ipv4Network) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&u32::from(block.prefix()).to_ne_bytes());
    key[4..].copy_from_slice(&block.network().octets());
    key
}

/// `struct prefix6`.
pub(super) fn prefix6(block: Ipv6Network) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(block.prefix()).to_ne_bytes());
    key[4..].copy_from_slice(&block.network().octets());
    key
}

/// `struct endpoint4`. `takes` is the largest packet that the path takes, bytes; 0 if that is what the network card does.
pub(super) fn endpoint4(at: SocketAddrV4, takes: u16) -> [u8; 8] {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&at.ip().octets());
    value[4..6].copy_from_slice(&at.port().to_be_bytes());
    value[6..].copy_from_slice(&takes.to_ne_bytes());
    value
}

/// `struct endpoint6`, with the same `takes`.
pub(super) fn endpoint6(at: SocketAddrV6, takes: u16) -> [u8; 20] {
    let mut value = [0; 20];
    value[..16].copy_from_slice(&at.ip().octets());
    value[16..18].copy_from_slice(&at.port().to_be_bytes());
    value[18..].copy_from_slice(&takes.to_ne_bytes());
    value
}

/// A key of `peers`: a prefix that is one address.
pub(super) fn peer(address: IpAddr) -> [u8; 20] {
    let mapped = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    prefix6(mapped.into())
}

/// `struct config`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Config {
    /// The tunnel device's index.
    pub(super) tunnel: u32,
    /// The number of the sending program that goes with these maps.
    pub(super) send: u32,
    /// The number of the program on the detour device that goes with these maps.
    pub(super) back: u32,
    pub(super) source_check: bool,
    /// Whether routers are kept from cutting what they may not cut inside.
    pub(super) path_mtu_discovery: bool,
    /// Whether packets come from the network card with an Ethernet header.
    pub(super) has_link_header: bool,
    pub(super) local4: Option<Ipv4Addr>,
    pub(super) local6: Option<Ipv6Addr>,
    pub(super) port: u16,
    pub(super) detour: Option<Detour>,
}

/// Where packets that the kernel is to unpack go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Detour {
    /// Packets go there. Before, only the way is tried.
    pub(super) is_open: bool,
    /// The UDP port of the detour device.
    pub(super) port: u16,
    /// By this Ethernet address packets of ours are known.
    pub(super) mac: [u8; 6],
}

impl Config {
    pub(super) fn bytes(&self) -> [u8; CONFIG_BYTES] {
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        let flags = flag(self.source_check, SOURCE_CHECK)
            | flag(!self.has_link_header, NO_LINK_HEADER)
            | flag(self.path_mtu_discovery, PATH_MTU_DISCOVERY)
            | flag(self.detour.is_some_and(|detour| detour.is_open), DETOUR);
        let mut bytes = [0; CONFIG_BYTES];
        for (at, number) in [self.tunnel, self.send, self.back, flags].into_iter().enumerate() {
            bytes[4 * at..4 * at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        bytes[16..20].copy_from_slice(&self.local4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes[20..36].copy_from_slice(&self.local6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        bytes[36..38].copy_from_slice(&self.port.to_be_bytes());
        if let Some(detour) = self.detour {
            bytes[38..40].copy_from_slice(&detour.port.to_be_bytes());
            bytes[40..46].copy_from_slice(&detour.mac);
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; CONFIG_BYTES] = bytes.try_into().ok()?;
        let number = |at| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let flags = number(12);
        let local4 = Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[16..20]).expect("four bytes"));
        let local6 = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[20..36]).expect("16 bytes"));
        let detour = Detour {
            is_open: flags & DETOUR != 0,
            port: u16::from_be_bytes([bytes[38], bytes[39]]),
            mac: bytes[40..46].try_into().expect("six bytes"),
        };
        Some(Self {
            tunnel: number(0),
            send: number(4),
            back: number(8),
            source_check: flags & SOURCE_CHECK != 0,
            path_mtu_discovery: flags & PATH_MTU_DISCOVERY != 0,
            has_link_header: flags & NO_LINK_HEADER == 0,
            local4: Some(local4).filter(|it| !it.is_unspecified()),
            local6: Some(local6).filter(|it| !it.is_unspecified()),
            port: u16::from_be_bytes([bytes[36], bytes[37]]),
            detour: Some(detour).filter(|detour| detour.port != 0),
        })
    }
}

/// How many packets met which end, since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    /// Sent to a peer by the kernel alone.
    pub(crate) sent: Tally,
    /// Left to the userspace engine to send, or to refuse.
    pub(crate) sent_on: Tally,
    /// Received from a peer by the kernel alone.
    pub(crate) received: Tally,
    /// Left to the userspace engine to receive, or to refuse.
    pub(crate) received_on: Tally,
    /// Dropped: from a known peer, with a source outside of its subnet.
    pub(crate) spoofed_source: Tally,
    /// Dropped: from nobody that we know.
    pub(crate) unknown_peer: Tally,
}

/// `struct tally`, of all processors.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Counts {
    /// From what stands at each place in `counts`: one tally for each processor.
    pub(super) fn sum(places: [&[u8]; COUNTS]) -> Self {
        let [sent, sent_on, received, received_on, spoofed_source, unknown_peer, _, _] =
            places.map(Tally::sum);
        Self { sent, sent_on, received, received_on, spoofed_source, unknown_peer }
    }
}

impl Tally {
    /// Of one place in `counts`.
    pub(super) fn sum(tallies: &[u8]) -> Self {
        let number = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        tallies.chunks_exact(TALLY_BYTES).fold(Self::default(), |sum, tally| Self {
            packets: sum.packets.wrapping_add(number(&tally[..8])),
            bytes: sum.bytes.wrapping_add(number(&tally[8..])),
        })
    }

    /// What has come since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }
}

/// How many places `counts` has.
pub(super) const COUNTS: usize = 8;

/// Places that are read alone.
pub(super) const RECEIVED: u32 = 2;
pub(super) const PATH_TOLD: u32 = 6;
pub(super) const DETOUR_PROBED: u32 = 7;

const CONFIG_BYTES: usize = 48;
const TALLY_BYTES: usize = 16;
const SOURCE_CHECK: u32 = 1;
const NO_LINK_HEADER: u32 = 2;
const DETOUR: u32 = 4;
const PATH_MTU_DISCOVERY: u32 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpf::{object::Object, programs::OBJECT};

    #[test]
    fn keys_and_values_have_the_sizes_of_the_maps() {
        let object = Object::parse(OBJECT).unwrap();
        let sizes: Vec<_> = object
            .maps
            .iter()
            .map(|(_, shape)| (shape.key_bytes as usize, shape.value_bytes as usize))
            .collect();
        assert_eq!(sizes, [(8, 8), (20, 20), (20, 4), (4, CONFIG_BYTES), (4, TALLY_BYTES)]);
        assert_eq!(object.maps[4].1.max_entries as usize, COUNTS);
    }

    #[test]
    fn prefixes_and_endpoints_are_in_network_byte_order() {
        let key = prefix4("10.3.2.0/24".parse().unwrap());
        assert_eq!((&key[..4], &key[4..]), (&24_u32.to_ne_bytes()[..], &[10, 3, 2, 0][..]));
        let value = endpoint4("192.0.2.2:8285".parse().unwrap(), 0);
        assert_eq!(value, [192, 0, 2, 2, 0x20, 0x5d, 0, 0]);
        let value = endpoint4("192.0.2.2:8285".parse().unwrap(), 1272);
        assert_eq!(value[6..], 1272_u16.to_ne_bytes());
        let key = prefix6("fd00:2::/64".parse().unwrap());
        assert_eq!(key[..9], [64_u32.to_ne_bytes().as_slice(), &[0xfd, 0, 0, 2, 0]].concat());
        let value = endpoint6("[2001:db8::2]:8285".parse().unwrap(), 0);
        assert_eq!(
            (&value[..4], &value[14..]),
            (&[0x20, 1, 0xd, 0xb8][..], &[0, 2, 0x20, 0x5d, 0, 0][..])
        );
        let key = peer([192, 0, 2, 2].into());
        assert_eq!(
            (&key[..4], &key[14..]),
            (&128_u32.to_ne_bytes()[..], &[0xff, 0xff, 192, 0, 2, 2][..])
        );
    }

    #[test]
    fn counts_are_sums_over_processors() {
        let two = |packets: [u64; 2]| {
            packets.map(|n| [n.to_ne_bytes(), (100 * n).to_ne_bytes()].concat()).concat()
        };
        let places = [[1, 2], [0, 5], [7, 0], [1, 1], [3, 3], [0, 9], [4, 0], [4, 4]].map(two);
        let counts = Counts::sum(places.each_ref().map(Vec::as_slice));
        let tally = |n| Tally { packets: n, bytes: 100 * n };
        let expected = Counts {
            sent: tally(3),
            sent_on: tally(5),
            received: tally(7),
            received_on: tally(2),
            spoofed_source: tally(6),
            unknown_peer: tally(9),
        };
        assert_eq!(counts, expected);
        assert_eq!(tally(7).since(tally(5)), tally(2));
    }

    proptest! {
        #[test]
        fn a_config_is_read_as_it_was_written(
            tunnel: u32, send: u32, back: u32, source_check: bool, path_mtu_discovery: bool, has_link_header: bool,
            local4 in prop::option::of(1_u32..), local6 in prop::option::of(1_u128..), port: u16,
            detour in prop::option::of((any::<bool>(), 1_u16.., any::<[u8; 6]>())),
        ) {
            let detour = detour.map(|(is_open, port, mac)| Detour { is_open, port, mac });
            let config = Config {
                detour, tunnel, send, back, source_check, path_mtu_discovery, has_link_header, port,
                local4: local4.map(Ipv4Addr::from), local6: local6.map(Ipv6Addr::from),
            };
            prop_assert_eq!(Config::parse(&config.bytes()), Some(config));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Config::parse(&bytes);
        }
    }
}
