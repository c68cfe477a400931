//! Packets for tests.

use std::net::Ipv6Addr;

use super::input;
use crate::wire;

/// A UDP packet with right checksums.
pub fn udp4(from: [u8; 4], to: [u8; 4], ttl: u8, data: &[u8]) -> Vec<u8> {
    ipv4(from, to, ttl, wire::UDP, &udp(data))
}

/// The same over IPv6.
pub fn udp6(from: &str, to: &str, ttl: u8, data: &[u8]) -> Vec<u8> {
    ipv6(from, to, ttl, wire::UDP, &udp(data))
}

/// A TCP packet with right checksums and a time stamp option.
pub fn tcp4(sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    ipv4([10, 3, 1, 2], [10, 3, 2, 3], 64, wire::TCP, &tcp(sequence, flags, data))
}

/// The same over IPv6.
pub fn tcp6(sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    ipv6("fd00:1::2", "fd00:2::3", 64, wire::TCP, &tcp(sequence, flags, data))
}

/// A packet of `protocol` over IPv4, with right checksums if it is TCP or UDP.
pub fn ipv4(from: [u8; 4], to: [u8; 4], ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0];
    packet.extend(from.iter().chain(&to));
    packet.extend(payload);
    let len = packet.len() as u16;
    wire::put_u16(&mut packet, 2, len);
    wire::fill_ipv4_checksum(&mut packet, 20);
    finish(packet)
}

/// The same over IPv6.
pub fn ipv6(from: &str, to: &str, ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, ttl];
    for address in [from, to] {
        packet.extend(address.parse::<Ipv6Addr>().unwrap().octets());
    }
    wire::put_u16(&mut packet, 4, payload.len() as u16);
    packet.extend(payload);
    finish(packet)
}

/// Packets as a kernel sent them.
pub fn captured() -> Vec<Vec<u8>> {
    let lines = include_str!("../../tests/fixtures/datagrams.txt").lines();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let packet = |line: &str| line.as_bytes().chunks(2).map(byte).collect();
    lines.filter(|line| !line.starts_with('#')).map(packet).collect()
}

/// The same IPv4 packet with options, a multiple of four bytes.
pub fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let mut longer = [&packet[..20], options, &packet[20..]].concat();
    longer[0] += options.len() as u8 / 4;
    let len = longer.len() as u16;
    wire::put_u16(&mut longer, 2, len);
    wire::fill_ipv4_checksum(&mut longer, 20 + options.len());
    longer
}

/// Whether the checksums of a TCP or UDP packet are right.
pub fn is_right(packet: &[u8]) -> bool {
    wire::Ip::new_checked(packet).unwrap().has_right_checksums()
}

fn udp(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x13, 0x88, 0x13, 0x89, 0, 0, 0, 0];
    bytes.extend(data);
    let len = bytes.len() as u16;
    wire::put_u16(&mut bytes, 4, len);
    bytes
}

fn tcp(sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x13, 0x88, 0x13, 0x89];
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 7, 0x80, flags, 0x10, 0, 0, 0, 0, 0]);
    bytes.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    bytes.extend(data);
    bytes
}

fn finish(mut packet: Vec<u8>) -> Vec<u8> {
    input::set_checksum(&mut packet);
    packet
}
