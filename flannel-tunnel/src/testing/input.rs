//! Packets out of any bytes.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    checksum,
    segment::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, Offload},
    wire::{self, Ip, Tcp},
};

/// What a peer sent.
pub struct Datagram {
    /// Where it came from.
    pub from: IpAddr,
    /// What it carries.
    pub packet: Vec<u8>,
}

/// A packet of a device with what the device says of it.
pub fn device(bytes: &[u8]) -> Option<(Vec<u8>, Offload)> {
    let (flags, rest) = bytes.split_first()?;
    let (header, packet) = rest.split_first_chunk()?;
    let (mut packet, mut offload) = (packet.to_vec(), Offload::parse(header));
    // As the kernel's are.
    packet.truncate(usize::from(u16::MAX));
    if flags & LENGTHS != 0 {
        set_lengths(&mut packet);
    }
    if flags & CHECKSUM != 0 {
        set_checksum(&mut packet);
    }
    if flags & DESCRIBE != 0 {
        describe(&mut packet, &mut offload, flags & LARGE != 0);
    }
    Some((packet, offload))
}

/// Datagrams that came together.
pub fn datagrams(mut bytes: &[u8]) -> Vec<Datagram> {
    let mut datagrams: Vec<Datagram> = Vec::new();
    while let [flags, high, low, rest @ ..] = bytes
        && datagrams.len() < MOST
    {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (own, rest) = rest.split_at(len);
        bytes = rest;
        let before = datagrams.last().filter(|_| flags & GOES_ON != 0);
        let mut packet =
            before.and_then(|before| next(&before.packet, own)).unwrap_or_else(|| own.into());
        packet.truncate(usize::from(u16::MAX));
        if flags & LENGTHS != 0 {
            set_lengths(&mut packet);
        }
        if flags & CHECKSUM != 0 {
            set_checksum(&mut packet);
        }
        let from = match flags >> 6 {
            n @ 1..=3 => peer(n),
            // Whoever it says it is from.
            _ => match Ip::new_checked(&packet).map(|ip| ip.source()) {
                Ok(IpAddr::V4(ip)) => peer(ip.octets()[2]),
                Ok(IpAddr::V6(ip)) => peer(ip.octets()[7]),
                Err(_) => peer(1),
            },
        };
        datagrams.push(Datagram { from, packet });
    }
    datagrams
}

/// The address of a peer.
pub fn peer(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, n).into()
}

/// The packet of the same flow that comes next and carries `data`.
fn next(before: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let ip = Ip::new_checked(before).ok()?;
    let (start, tcp) = (ip.header_len(), Tcp::new_checked(ip.payload()));
    let header_len = match ip.protocol() {
        wire::TCP => start + tcp?.header_len(),
        wire::UDP if ip.payload().len() >= wire::UDP_HEADER => start + wire::UDP_HEADER,
        _ => return None,
    };
    let mut packet = [&before[..header_len], data].concat();
    if ip.protocol() == wire::TCP {
        let carried = (before.len() - header_len) as u32;
        let sequence = wire::u32_at(before, start + 4).wrapping_add(carried);
        packet[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
        packet[start + 13] &= !wire::PSH;
    }
    if let Ip::V4(v4) = ip {
        wire::put_u16(&mut packet, 4, v4.identification().wrapping_add(1));
    }
    Some(packet)
}

/// Makes a packet as long as it says, for packets that have an IP header.
fn set_lengths(packet: &mut [u8]) {
    let len = packet.len();
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if len >= wire::IPV4_HEADER => {
            let header_len = usize::from(packet[0] & 0xf) * 4;
            wire::put_u16(packet, 2, len as u16);
            if (wire::IPV4_HEADER..=len).contains(&header_len) {
                wire::fill_ipv4_checksum(packet, header_len);
            }
        }
        Some(6) if len >= wire::IPV6_HEADER => {
            wire::put_u16(packet, 4, (len - wire::IPV6_HEADER) as u16);
        }
        _ => return,
    }
    let Ok(ip) = Ip::new_checked(packet) else { return };
    let (start, behind) = (ip.header_len(), ip.payload().len());
    if ip.protocol() == wire::UDP && behind >= wire::UDP_HEADER {
        wire::put_u16(packet, start + 4, behind as u16);
    }
}

/// Where the checksum of a TCP or UDP packet is, behind the IP header.
fn checksum_offset(ip: &Ip<'_>) -> Option<usize> {
    match ip.protocol() {
        _ if ip.is_fragment() => None,
        wire::TCP if ip.payload().len() >= wire::TCP_HEADER => Some(16),
        wire::UDP if ip.payload().len() >= wire::UDP_HEADER => Some(6),
        _ => None,
    }
}

/// Puts the right checksum into a TCP or UDP packet that is whole.
pub fn set_checksum(packet: &mut [u8]) {
    let Ok(ip) = Ip::new_checked(packet) else { return };
    let Some(offset) = checksum_offset(&ip) else { return };
    let (start, pseudo) = (ip.header_len(), ip.pseudo_sum(ip.protocol(), ip.payload().len()));
    wire::put_u16(packet, start + offset, 0);
    let checksum = !checksum::add(pseudo, checksum::sum(&packet[start..]));
    wire::put_u16(packet, start + offset, if checksum == 0 { 0xffff } else { checksum });
}

/// Makes the device say of a packet what a kernel says.
fn describe(packet: &mut [u8], offload: &mut Offload, is_large: bool) {
    let Ok(ip) = Ip::new_checked(packet) else { return };
    let Some(offset) = checksum_offset(&ip) else { return };
    let start = ip.header_len();
    let pseudo = ip.pseudo_sum(ip.protocol(), ip.payload().len());
    offload.kind = match (is_large, ip.protocol(), ip) {
        (false, ..) => GSO_NONE,
        (true, wire::TCP, Ip::V4(_)) => GSO_TCPV4,
        (true, wire::TCP, Ip::V6(_)) => GSO_TCPV6,
        (true, ..) => GSO_UDP,
    };
    offload.needs_checksum = true;
    offload.checksum_start = start as u16;
    offload.checksum_offset = offset as u16;
    wire::put_u16(packet, start + offset, pseudo);
}

// What the first byte asks for.
/// Lengths and the IP header's checksum as they should be.
const LENGTHS: u8 = 1;
/// The checksum of TCP and UDP as it should be.
const CHECKSUM: u8 = 2;
/// From a device: its header as a kernel writes it.
const DESCRIBE: u8 = 4;
/// From a peer: the headers are those of the packet before, one further on.
const GOES_ON: u8 = 4;
/// From a device: the packet is a large one.
const LARGE: u8 = 8;

/// Datagrams at once, more than a call takes from a socket.
const MOST: usize = 200;
