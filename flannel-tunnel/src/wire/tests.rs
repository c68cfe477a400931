use proptest::prelude::*;

use super::*;
use crate::testing::{arbitrary, packets};

#[test]
fn a_whole_packet_shows_its_fields() {
    let packet = packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, b"hello");
    let ip = Ip::new_checked(&packet).unwrap();
    assert_eq!((ip.source(), ip.destination()), ([10, 3, 1, 2].into(), [10, 3, 2, 3].into()));
    assert_eq!((ip.ttl(), ip.protocol(), ip.header_len()), (64, UDP, 20));
    assert_eq!(Udp::new_checked(ip.payload()).unwrap().total_len(), 13);
    assert!(!ip.is_fragment());
    let Ip::V4(v4) = ip else { panic!() };
    assert!(v4.has_right_checksum());
}

#[test]
fn what_is_not_one_whole_packet_is_refused_by_reason() {
    let packet = packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, b"hello");
    let longer = [&packet[..], b"x"].concat();
    let with = |at: usize, value: u8| {
        let mut changed = packet.clone();
        changed[at] = value;
        Ip::new_checked(&changed).err()
    };
    assert_eq!(Ip::new_checked(&[]), Err(PacketError::Truncated));
    assert_eq!(Ip::new_checked(&packet[..19]), Err(PacketError::Truncated));
    assert_eq!(Ip::new_checked(&packet[..packet.len() - 1]), Err(PacketError::Truncated));
    assert_eq!(Ip::new_checked(&longer), Err(PacketError::Oversized));
    assert_eq!(with(0, 0x55), Some(PacketError::Version));
    assert_eq!(with(0, 0x44), Some(PacketError::HeaderLength));
    assert_eq!(with(0, 0x4f), Some(PacketError::HeaderLength));
}

#[test]
fn source_routes_and_senseless_options_are_told_from_others() {
    let route = |options: &[u8]| {
        let packet =
            packets::with_options(&packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, b""), options);
        Ipv4::new_checked(&packet).unwrap().has_source_route()
    };
    assert!(!route(&[]));
    // Record route, router alert.
    assert!(!route(&[7, 7, 4, 0, 0, 0, 0, 0]));
    assert!(!route(&[148, 4, 0, 0]));
    assert!(!route(&[1, 1, 0, 131]), "behind the end of the options");
    assert!(route(&[131, 7, 4, 1, 2, 3, 4, 0]));
    assert!(route(&[1, 137, 3, 4]));
    assert!(route(&[7, 1, 0, 0]), "shorter than its own header");
    assert!(route(&[7, 9, 0, 0]), "longer than the options");
    assert!(route(&[1, 1, 1, 7]), "without a length");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in arbitrary::packet()) {
        if let Ok(ip) = Ip::new_checked(&bytes) {
            let _ = (ip.source(), ip.destination(), ip.ttl(), ip.protocol(), ip.is_fragment());
            prop_assert_eq!(ip.header_len() + ip.payload().len(), bytes.len());
            let _ = ip.pseudo_sum(ip.protocol(), ip.payload().len());
            if let Ip::V4(v4) = ip {
                let _ = (v4.has_source_route(), v4.has_right_checksum(), v4.identification());
                let _ = (v4.dont_fragment(), v4.more_fragments(), v4.fragment_offset());
            }
            if let Some(tcp) = Tcp::new_checked(ip.payload()) {
                prop_assert!(tcp.header_len() <= ip.payload().len());
                let _ = (tcp.sequence(), tcp.flags());
            }
            if let Some(udp) = Udp::new_checked(ip.payload()) {
                let _ = (udp.source_port(), udp.total_len(), udp.checksum());
            }
        }
    }

    #[test]
    fn a_decremented_ttl_keeps_a_right_checksum_right_and_a_wrong_one_wrong(ttl in 1u8.., wrong: bool, id: u16) {
        let mut packet = packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], ttl, b"hello");
        put_u16(&mut packet, 4, id);
        fill_ipv4_checksum(&mut packet, 20);
        packet[11] ^= u8::from(wrong);
        decrement_ttl(&mut packet);
        let v4 = Ipv4::new_checked(&packet).unwrap();
        prop_assert_eq!(packet[8], ttl - 1);
        prop_assert_eq!(v4.has_right_checksum(), !wrong);
    }

    #[test]
    fn a_decremented_hop_limit_changes_nothing_else(ttl in 1u8..) {
        let before = packets::udp6("fd00:1::2", "fd00:2::3", ttl, b"hello");
        let mut after = before.clone();
        decrement_ttl(&mut after);
        prop_assert_eq!(after[7], ttl - 1);
        after[7] = ttl;
        prop_assert_eq!(after, before);
    }
}
