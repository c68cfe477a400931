//! Packets for tests and fuzzers, and what has to hold for them.

#[cfg(any(test, feature = "proptest"))]
pub mod arbitrary;
pub mod input;
pub mod packets;

use std::net::IpAddr;

use crate::{
    gro::{Gro, Output, PacketRef},
    segment::{GSO_NONE, Large, Offload},
    wire::{self, Ip},
};

/// Joined and cut again, packets are the same, each flow in its order.
pub fn check_joined(packets: &[Vec<u8>]) {
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
pub fn joined(input: &[Vec<u8>]) -> Vec<(Offload, Vec<u8>)> {
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
pub fn cut(output: &[(Offload, Vec<u8>)]) -> Vec<Vec<u8>> {
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
pub fn normalized(packet: &[u8]) -> Vec<u8> {
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

/// The packet that `packet` is.
///
/// # Panics
///
/// If it is none.
pub fn whole(packet: &[u8]) -> Ip<'_> {
    Ip::new_checked(packet).unwrap_or_else(|fault| panic!("{fault:?}: {packet:x?}"))
}

/// Whether all checksums of a TCP or UDP packet are right.
pub fn is_right(ip: &Ip<'_>) -> bool {
    has_right_header(ip) && plain_sum(pseudo(ip), ip.payload()) == 0xffff
}

/// Whether the checksum of the IP header is right.
pub fn has_right_header(ip: &Ip<'_>) -> bool {
    match ip {
        Ip::V4(v4) => plain_sum(0, &ip.bytes()[..v4.header_len()]) == 0xffff,
        Ip::V6(_) => true,
    }
}

/// The sum of the pseudo header, RFC 768 and RFC 8200.
pub fn pseudo(ip: &Ip<'_>) -> u16 {
    let addresses = match ip {
        Ip::V4(_) => &ip.bytes()[12..20],
        Ip::V6(_) => &ip.bytes()[8..40],
    };
    let rest = [[0, ip.protocol()], (ip.payload().len() as u16).to_be_bytes()];
    plain_sum(plain_sum(0, addresses), rest.as_flattened())
}

/// The ones' complement sum, word by word as RFC 1071 defines it: not the code that is checked by it.
pub fn plain_sum(start: u16, bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(start, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}
