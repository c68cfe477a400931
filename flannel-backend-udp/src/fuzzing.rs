//! What has to hold for every packet, for fuzzers: functions that take any bytes and panic if it does not.
//!
//! They are made of what the userspace engine's threads call between one system call and the next. Random bytes are no packets,
//! so the bytes also say what is to be set right in them first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_tunnel::{
    batch::{Batch, Batches},
    segment::{GSO_NONE, Large, Offload},
    testing::{
        check_joined, has_right_header,
        input::{self, Datagram},
        is_right, normalized, plain_sum, pseudo, whole,
    },
    wire::{self, Ip, Tcp},
};

use crate::{
    icmp::{self, Problem},
    plan::ForwardingPlan,
    table::Table,
    verdict::{self, DropReason},
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
    let mut batches = Batches::default();
    let mut send = |batch: &Batch| datagrams.extend(batch.packets().map(<[u8]>::to_vec));
    let taken = match verdict::outbound(&packet, &table()) {
        Ok((ip, to)) => {
            check_answers(&ip);
            match offload.kind {
                GSO_NONE => batches.add(&mut packet, &offload, to, &mut send),
                _ => Large::new_checked(&ip, &offload)
                    .and_then(|large| batches.add_large(&large, to, &mut send)),
            }
            .map_err(DropReason::from)
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

#[cfg(test)]
mod tests;
