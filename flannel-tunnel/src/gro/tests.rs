use proptest::prelude::*;

use super::*;
use crate::testing::{arbitrary, cut, joined, normalized, packets};

fn data(n: usize) -> Vec<u8> {
    (0..n).map(|n| n as u8).collect()
}

#[test]
fn tcp_that_goes_on_is_joined() {
    for tcp in [packets::tcp4, packets::tcp6] {
        let input = [
            tcp(u32::MAX - 99, wire::ACK, &data(100)),
            tcp(0, wire::ACK, &data(100)),
            tcp(100, wire::ACK | wire::PSH, &data(30)),
            tcp(130, wire::ACK, &data(100)),
        ];
        let output = joined(&input);
        assert_eq!(output.len(), 2);
        assert_eq!((output[0].0.size, output[0].1.len()), (100, input[0].len() + 130));
        let ip = Ip::new_checked(&output[0].1).unwrap();
        assert_eq!(Tcp::new_checked(ip.payload()).unwrap().flags(), wire::ACK | wire::PSH);
        assert_eq!(output[1].1, input[3]);
    }
}

#[test]
fn udp_of_one_size_is_joined_and_a_shorter_one_ends_it() {
    let udp = |len| packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, &data(len));
    let input = [udp(64), udp(64), udp(20), udp(64), udp(65)];
    let lens: Vec<_> = joined(&input).into_iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(lens, [28 + 64 + 64 + 20, 28 + 64, 28 + 65]);
}

#[test]
fn what_differs_is_not_joined() {
    let first = packets::tcp4(1000, wire::ACK, &data(100));
    let second = packets::tcp4(1100, wire::ACK, &data(100));
    assert_eq!(joined(&[first.clone(), second.clone()]).len(), 1);
    let refix = |mut packet: Vec<u8>| {
        wire::fill_ipv4_checksum(&mut packet, 20);
        wire::put_u16(&mut packet, 36, 0);
        let ip = Ip::new_checked(&packet).unwrap();
        let sum = checksum::add(
            ip.pseudo_sum(wire::TCP, ip.payload().len()),
            checksum::sum(ip.payload()),
        );
        wire::put_u16(&mut packet, 36, !sum);
        packet
    };
    // Type of service, do not fragment with another identification, TTL, sequence, acknowledgement, window, urgent, options.
    for at in [1, 6, 8, 27, 31, 35, 39, 47] {
        let mut other = second.clone();
        other[at] ^= 0x40;
        let input = [first.clone(), refix(other)];
        assert!(packets::is_right(&input[1]));
        let output = joined(&input);
        assert_eq!(cut(&output), input, "byte {at}");
    }
    for flags in [wire::FIN, wire::CWR, 0x02, 0x04, 0x20, 0x40] {
        let other = packets::tcp4(1100, wire::ACK | flags, &data(100));
        assert_eq!(joined(&[first.clone(), other]).len(), 2, "flags {flags:x}");
    }
}

#[test]
fn a_wrong_checksum_stays_one() {
    let tcp = |n: u32| packets::tcp4(1000 + 100 * n, wire::ACK, &data(100));
    let good: Vec<_> = (0..4).map(tcp).collect();
    for (bad, at) in [(0, 60), (1, 60), (2, 60), (0, 11), (1, 11), (3, 37)] {
        let mut input = good.clone();
        input[bad][at] ^= 1;
        let output = cut(&joined(&input));
        let wrong: Vec<_> = output.iter().filter(|packet| !packets::is_right(packet)).collect();
        assert_eq!(wrong, [&input[bad]]);
        assert_eq!(output.len(), 4);
    }
}

#[test]
fn flows_are_joined_apart_and_keep_their_order() {
    let a = |n: u32| packets::tcp4(1000 + 100 * n, wire::ACK, &data(100));
    let b = |n: u32| packets::tcp6(5000 + 100 * n, wire::ACK, &data(100));
    let end = packets::tcp4(1200, wire::ACK | wire::FIN, b"");
    let input = [a(0), b(0), a(1), b(1), end.clone(), b(2)];
    let output = joined(&input);
    assert_eq!(output.len(), 3);
    assert_eq!(output[1].1, end, "behind the data before it");
    assert_eq!(output[2].1.len(), b(0).len() + 200);
}

#[test]
fn a_connection_of_a_kernel_is_joined_and_cut_into_what_it_sent() {
    let input = packets::captured();
    let output = joined(&input);
    // The three packets with data of each connection.
    assert_eq!(output.len(), input.len() - 4);
    assert_eq!(
        cut(&output).iter().map(|packet| normalized(packet)).collect::<Vec<_>>(),
        input.iter().map(|packet| normalized(packet)).collect::<Vec<_>>()
    );
}

proptest! {
    #[test]
    fn cutting_what_was_joined_gives_the_same_packets(
        steps in proptest::collection::vec((0u8..5, 1usize..400, any::<bool>(), 0u8..20), 0..150),
    ) {
        let mut sequence = [0u32; 5];
        let input: Vec<_> = steps.into_iter().map(|(flow, len, push, damage)| {
            let len = if len > 100 { 100 } else { len };
            let flags = wire::ACK | if push { wire::PSH } else { 0 };
            let at = sequence[usize::from(flow)];
            sequence[usize::from(flow)] = at.wrapping_add(len as u32);
            let mut packet = match flow {
                0 => packets::tcp4(at, flags, &data(len)),
                1 => packets::tcp6(at, flags, &data(len)),
                2 => packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, &data(len)),
                3 => packets::udp6("fd00:1::2", "fd00:2::3", 64, &data(len)),
                _ => packets::ipv4([10, 3, 1, 2], [10, 3, 2, 3], 64, wire::ICMP, &data(len)),
            };
            if damage == 0 {
                *packet.last_mut().unwrap() ^= 1;
            }
            packet
        }).collect();
        let output = cut(&joined(&input));
        prop_assert_eq!(output.len(), input.len());
        // Each flow in its order.
        for protocol in [(4, wire::TCP), (6, wire::TCP), (4, wire::UDP), (6, wire::UDP), (4, wire::ICMP)] {
            let of = |packets: &[Vec<u8>]| packets.iter().filter(|packet| {
                let ip = Ip::new_checked(packet).unwrap();
                (packet[0] >> 4, ip.protocol()) == protocol
            }).map(|packet| normalized(packet)).collect::<Vec<_>>();
            prop_assert_eq!(of(&output), of(&input));
        }
    }

    #[test]
    fn no_bytes_panic_and_none_is_lost(input in proptest::collection::vec(arbitrary::packet(), 0..20)) {
        let whole = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).sum::<usize>();
        prop_assert_eq!(whole(&cut(&joined(&input))), whole(&input));
    }
}
