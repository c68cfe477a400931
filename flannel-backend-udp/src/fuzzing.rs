//! What has to hold for every packet, for fuzzers: functions that take any bytes and panic if it does not.
//!
//! They are made of what the userspace engine's threads call between one system call and the next. Random bytes are no packets,
//! so the bytes also say what is to be set right in them first.

pub(crate) mod input;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use self::input::Datagram;
use crate::{
    batch::{Batch, Batches},
    gro::{Gro, Output, PacketRef},
    icmp::{self, Problem},
    plan::ForwardingPlan,
    segment::{GSO_NONE, Large, Offload},
    table::Table,
    verdict,
    wire::{self, Ip, Tcp},
};

/// What a TUN device hands over: a byte that says what to set right, the device's header of ten bytes, and a packet.
///
/// Whatever leaves as datagrams are whole packets, one hop on, with exact checksums where the kernel left them to us, which carry
/// what the packet carried; joined and cut again they are the same datagrams. Who is told why a packet does not leave gets a whole
/// packet with exact checksums.
///
/// # Panics
///
/// If that does not hold.
pub fn from_device(bytes: &[u8]) {
    let Some((mut packet, offload)) = input::device(bytes) else { return };
    let before = packet.clone();
    let mut datagrams: Vec<Vec<u8>> = Vec::new();
    let mut batches = Batches::new();
    let mut send = |batch: &Batch| datagrams.extend(batch.packets().map(<[u8]>::to_vec));
    let taken = match verdict::outbound(&packet, &table()) {
        Ok((ip, to)) => {
            check_answers(&ip);
            match offload.kind {
                GSO_NONE => batches.add(&mut packet, &offload, to, &mut send),
                _ => Large::new_checked(&ip, &offload)
                    .and_then(|large| batches.add_large(&large, to, &mut send)),
            }
        }
        Err(reason) => {
            Ip::new_checked(&packet).iter().for_each(check_answers);
            Err(reason)
        }
    };
    batches.flush(&mut send);
    if taken.is_err() {
        return assert!(
            datagrams.is_empty(),
            "{taken:?}, and yet {} packets left",
            datagrams.len()
        );
    }
    if offload.kind == GSO_NONE {
        check_single(&before, &offload, &datagrams);
    } else {
        check_parts(&before, &offload, &datagrams);
    }
    check_joined(&datagrams);
}

/// Datagrams that came together: each is a byte that says what to set right and from whom it is, two bytes of length, and as many
/// bytes.
///
/// A packet is let in only whole, from a known peer, from inside of that peer's subnet and with hops left. Joined and cut again,
/// those let in are the same packets, each flow in its order; what has a wrong checksum is never joined.
///
/// # Panics
///
/// If that does not hold.
pub fn from_peers(bytes: &[u8]) {
    let table = table();
    let mut packets = Vec::new();
    for Datagram { from, mut packet } in input::datagrams(bytes) {
        let Ok(ip) = verdict::Inbound::new(&table).judge(&packet, from) else { continue };
        assert_eq!(table.endpoint(ip.source()).map(|peer| peer.ip()), Some(from));
        assert!(table.is_known(from) && ip.ttl() > 1);
        let (ttl, was_right) = (ip.ttl(), has_right_header(&ip));
        wire::decrement_ttl(&mut packet);
        let ip = whole(&packet);
        assert_eq!((ip.ttl(), has_right_header(&ip)), (ttl - 1, was_right));
        packets.push(packet);
    }
    check_joined(&packets);
}

/// Two peers, whose subnets are those that the seeds' packets come from and go to.
fn table() -> Table {
    Table::new(&ForwardingPlan::to(&[
        ("10.244.1.0/24", "192.0.2.1:8285"),
        ("10.244.2.0/24", "192.0.2.2:8285"),
        ("fd00:10:244:1::/64", "192.0.2.1:8285"),
        ("fd00:10:244:2::/64", "192.0.2.2:8285"),
    ]))
}

fn check_answers(ip: &Ip<'_>) {
    let from = match ip {
        Ip::V4(_) => IpAddr::V4(Ipv4Addr::new(10, 244, 3, 0)),
        Ip::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 3, 0, 0, 0, 0)),
    };
    for problem in [Problem::NoRoute, Problem::TooBig(1280)] {
        let Some(answer) = icmp::answer(ip, problem, from) else { continue };
        let answer = whole(&answer);
        assert_eq!((answer.source(), answer.destination()), (from, ip.source()));
        assert!(answer.bytes().len() <= 1280 && has_right_header(&answer));
        let over = match answer {
            Ip::V4(_) => 0,
            Ip::V6(_) => pseudo(&answer),
        };
        assert_eq!(plain_sum(over, answer.payload()), 0xffff);
        assert!(
            icmp::answer(&answer, problem, from).is_none(),
            "an error is answered with an error"
        );
    }
}

/// A packet that leaves as one is the same but for its hops and what the kernel left out.
fn check_single(before: &[u8], offload: &Offload, datagrams: &[Vec<u8>]) {
    let [datagram] = datagrams else { panic!("{} packets for one", datagrams.len()) };
    let mut expected = before.to_vec();
    if offload.needs_checksum {
        let start = usize::from(offload.checksum_start);
        let at = start + usize::from(offload.checksum_offset);
        // The sum of the pseudo header in its place and the checksum after belong to the same packet.
        if offload.checksum_offset.is_multiple_of(2) {
            let pseudo = wire::u16_at(before, at);
            assert_eq!(plain_sum(pseudo, &datagram[start..]), 0xffff);
        }
        expected[at..at + 2].copy_from_slice(&datagram[at..at + 2]);
    }
    let (was, is) = (whole(&expected), whole(datagram));
    assert_eq!(is.ttl(), was.ttl() - 1);
    assert_eq!(has_right_header(&is), has_right_header(&was));
    assert_eq!(normalized(datagram), normalized(&expected));
}

/// Parts of a large packet carry together what it carried, each with headers of its own.
fn check_parts(large: &[u8], offload: &Offload, parts: &[Vec<u8>]) {
    let large = whole(large);
    let tcp = Tcp::new_checked(large.payload()).filter(|_| large.protocol() == wire::TCP);
    let header_len = large.header_len() + tcp.map_or(wire::UDP_HEADER, |tcp| tcp.header_len());
    let data = &large.bytes()[header_len..];
    let size = usize::from(offload.size);
    assert_eq!(parts.len(), data.len().div_ceil(size).max(1));
    for (n, part) in parts.iter().enumerate() {
        let from = (n * size).min(data.len());
        assert_eq!(part[header_len..], data[from..data.len().min(from + size)]);
        let part = whole(part);
        assert!(is_right(&part), "part {n} of {large:?} has a wrong checksum");
        assert_eq!((part.source(), part.ttl()), (large.source(), large.ttl() - 1));
        assert_eq!(part.destination(), large.destination());
        if let (Ip::V4(part), Ip::V4(large)) = (part, large) {
            assert_eq!(part.identification(), large.identification().wrapping_add(n as u16));
        }
        if let Some(tcp) = tcp {
            let part = Tcp::new_checked(part.payload()).expect("a part has all headers");
            assert_eq!(part.sequence(), tcp.sequence().wrapping_add((n * size) as u32));
        }
    }
}

/// Joined and cut again, packets are the same, each flow in its order.
fn check_joined(packets: &[Vec<u8>]) {
    let joined = joined(packets);
    let after = cut(&joined);
    assert_eq!(after.len(), packets.len());
    let flows = |packets: &[Vec<u8>]| {
        let mut flows: Vec<_> =
            packets.iter().map(|packet| (flow(packet), normalized(packet))).collect();
        // Keeps the order within a flow.
        flows.sort_by_key(|(flow, _)| *flow);
        flows
    };
    assert_eq!(flows(&after), flows(packets));
    for (offload, packet) in &joined {
        assert!(offload.kind == GSO_NONE || has_right_header(&whole(packet)));
    }
}

/// What comes out for these packets, large ones put together again.
pub(crate) fn joined(input: &[Vec<u8>]) -> Vec<(Offload, Vec<u8>)> {
    let mut join = Gro::new(true);
    let mut output = Vec::new();
    let mut out = |it: Output<'_>| {
        output.push(match it {
            Output::Plain(piece) => (Offload::default(), piece.of(input).to_vec()),
            Output::Joined { offload, header, data } => {
                let data = data.iter().flat_map(|piece| piece.of(input));
                (offload, header.iter().chain(data).copied().collect())
            }
        });
    };
    for (buffer, packet) in input.iter().enumerate() {
        join.push(PacketRef { buffer, at: 0, len: packet.len() }, input, &mut out);
    }
    join.flush(&mut out);
    output
}

/// The same as the packets that the kernel makes of them.
pub(crate) fn cut(output: &[(Offload, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (offload, packet) in output {
        if offload.kind == GSO_NONE {
            packets.push(packet.clone());
            continue;
        }
        let large = Large::new_checked(&whole(packet), offload).expect("joined by us");
        for n in 0..large.count() {
            let mut part = vec![0; large.len(n)];
            large.write(n, &mut part);
            packets.push(part);
        }
    }
    packets
}

/// What a packet says, whatever its TTL and, if it must not be cut, its identification are. A checksum of TCP may be either zero
/// of ones' complement; one of UDP may not.
pub(crate) fn normalized(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let checksum =
        Ip::new_checked(&packet).ok().filter(|ip| ip.protocol() == wire::TCP && !ip.is_fragment());
    if let Some(at) = checksum.map(|ip| ip.header_len() + TCP_CHECKSUM)
        && packet.get(at..at + 2) == Some(&[0xff; 2])
    {
        packet[at..at + 2].fill(0);
    }
    match Ip::new_checked(&packet) {
        Ok(Ip::V4(v4)) => {
            let has_identity = !v4.dont_fragment() || Ip::V4(v4).is_fragment();
            packet[8] = 0;
            packet[10..12].fill(0);
            if !has_identity {
                packet[4..6].fill(0);
            }
        }
        Ok(Ip::V6(_)) => packet[7] = 0,
        Err(_) => {}
    }
    packet
}

/// Where it is in a header of TCP (RFC 9293, 3.1).
const TCP_CHECKSUM: usize = 16;

/// Version, protocol and, where they are known, addresses and ports. Packets of one flow must not overtake each other.
fn flow(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, [u8; 4])> {
    let ip = Ip::new_checked(packet).ok()?;
    let has_ports = matches!(ip.protocol(), wire::TCP | wire::UDP) && !ip.is_fragment();
    let ports = ip.payload().first_chunk().filter(|_| has_ports).copied();
    Some((ip.source(), ip.destination(), ip.protocol(), ports.unwrap_or_default()))
}

fn whole(packet: &[u8]) -> Ip<'_> {
    Ip::new_checked(packet).unwrap_or_else(|fault| panic!("{fault:?}: {packet:x?}"))
}

fn is_right(ip: &Ip<'_>) -> bool {
    has_right_header(ip) && plain_sum(pseudo(ip), ip.payload()) == 0xffff
}

fn has_right_header(ip: &Ip<'_>) -> bool {
    match ip {
        Ip::V4(v4) => plain_sum(0, &ip.bytes()[..v4.header_len()]) == 0xffff,
        Ip::V6(_) => true,
    }
}

/// The sum of the pseudo header, RFC 768 and RFC 8200.
fn pseudo(ip: &Ip<'_>) -> u16 {
    let addresses = match ip {
        Ip::V4(_) => &ip.bytes()[12..20],
        Ip::V6(_) => &ip.bytes()[8..40],
    };
    let rest = [[0, ip.protocol()], (ip.payload().len() as u16).to_be_bytes()];
    plain_sum(plain_sum(0, addresses), rest.as_flattened())
}

/// The ones' complement sum, word by word as RFC 1071 defines it: not the code that is checked by it.
fn plain_sum(start: u16, bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(start, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

#[cfg(test)]
mod tests;
