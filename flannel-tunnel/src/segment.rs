//! Large packets as the kernel hands them over, cut into those of the wire.

use crate::{
    checksum,
    error::PacketError,
    wire::{self, Ip, Tcp},
};

/// What precedes each packet of the device: `struct virtio_net_hdr` of linux/virtio_net.h, in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offload {
    /// Whether the checksum of TCP or UDP is left to whoever takes the packet.
    pub needs_checksum: bool,
    /// What kind of large packet it is: [`GSO_NONE`] for a packet of the wire.
    pub kind: u8,
    /// All headers together, bytes.
    pub header_len: u16,
    /// What each part carries of the payload, bytes; the last may carry less.
    pub size: u16,
    /// Where the bytes begin that a checksum is to cover.
    pub checksum_start: u16,
    /// Where the checksum is, from there.
    pub checksum_offset: u16,
}

impl Offload {
    /// Bytes of the header.
    pub const LEN: usize = 10;

    /// What the header says.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            // Senders of TCP that report congestion are cut like others.
            kind: bytes[1] & !GSO_ECN,
            header_len: at(2),
            size: at(4),
            checksum_start: at(6),
            checksum_offset: at(8),
        }
    }

    /// The header that says so.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = self.kind;
        for (at, value) in [
            (2, self.header_len),
            (4, self.size),
            (6, self.checksum_start),
            (8, self.checksum_offset),
        ] {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

/// Fills in the checksum that the kernel has left to us.
pub fn complete_checksum(packet: &mut [u8], offload: &Offload) -> Result<(), PacketError> {
    if !offload.needs_checksum {
        return Ok(());
    }
    let start = usize::from(offload.checksum_start);
    let at = start + usize::from(offload.checksum_offset);
    if start < wire::IPV4_HEADER || start > packet.len() || at + 2 > packet.len() || at < start {
        return Err(PacketError::BadOffload);
    }
    // The sum of the pseudo header is in its place.
    let checksum = !checksum::sum(&packet[start..]);
    // UDP: none is said by 0.
    wire::put_u16(packet, at, if checksum == 0 { 0xffff } else { checksum });
    Ok(())
}

/// A large packet, which is whole by its IP header.
#[derive(Clone, Copy, Debug)]
pub struct Large<'a> {
    packet: &'a [u8],
    ip_len: usize,
    header_len: usize,
    size: usize,
    protocol: u8,
}

impl<'a> Large<'a> {
    /// The packet that `offload` describes as large.
    pub fn new_checked(ip: &Ip<'a>, offload: &Offload) -> Result<Self, PacketError> {
        let (protocol, len) = match (offload.kind, ip) {
            (GSO_TCPV4, Ip::V4(_)) | (GSO_TCPV6, Ip::V6(_)) => {
                (wire::TCP, Tcp::new_checked(ip.payload()).map(|tcp| tcp.header_len()))
            }
            (GSO_UDP, _) => {
                let udp = (ip.payload().len() >= wire::UDP_HEADER).then_some(wire::UDP_HEADER);
                (wire::UDP, udp)
            }
            _ => return Err(PacketError::BadOffload),
        };
        let (Some(len), size) = (len, usize::from(offload.size)) else {
            return Err(PacketError::BadOffload);
        };
        if size == 0 || ip.protocol() != protocol || ip.is_fragment() {
            return Err(PacketError::BadOffload);
        }
        let header_len = ip.header_len() + len;
        Ok(Self { packet: ip.bytes(), ip_len: ip.header_len(), header_len, size, protocol })
    }

    /// How many packets it becomes.
    pub fn count(&self) -> usize {
        (self.packet.len() - self.header_len).div_ceil(self.size).max(1)
    }

    /// The length of all of them but the last, bytes.
    pub fn segment_len(&self) -> usize {
        self.header_len + self.size
    }

    /// The length of the packet of this number, counted from 0, bytes.
    pub fn len(&self, n: usize) -> usize {
        self.header_len + self.data(n).len()
    }

    /// Writes the packet of this number to the start of `out`, which has room for it, with a TTL of one less.
    pub fn write(&self, n: usize, out: &mut [u8]) {
        self.write_after(1, n, out);
    }

    /// The same with the TTL that it has.
    pub fn write_unrouted(&self, n: usize, out: &mut [u8]) {
        self.write_after(0, n, out);
    }

    /// The same `hops` routers on.
    fn write_after(&self, hops: u8, n: usize, out: &mut [u8]) {
        let data = self.data(n);
        let (ip_len, header_len) = (self.ip_len, self.header_len);
        let out = &mut out[..header_len + data.len()];
        out[..header_len].copy_from_slice(&self.packet[..header_len]);
        out[header_len..].copy_from_slice(data);
        let behind = out.len() - ip_len;
        if ip_len == wire::IPV6_HEADER && out[0] >> 4 == 6 {
            wire::put_u16(out, 4, behind as u16);
            out[7] -= hops;
        } else {
            let len = out.len() as u16;
            wire::put_u16(out, 2, len);
            let id = wire::u16_at(out, 4).wrapping_add(n as u16);
            wire::put_u16(out, 4, id);
            out[8] -= hops;
            wire::fill_ipv4_checksum(out, ip_len);
        }
        let at = if self.protocol == wire::TCP {
            let sequence = wire::u32_at(out, ip_len + 4).wrapping_add((n * self.size) as u32);
            out[ip_len + 4..ip_len + 8].copy_from_slice(&sequence.to_be_bytes());
            if n + 1 < self.count() {
                out[ip_len + 13] &= !(wire::FIN | wire::PSH);
            }
            if n > 0 {
                out[ip_len + 13] &= !wire::CWR;
            }
            ip_len + 16
        } else {
            wire::put_u16(out, ip_len + 4, behind as u16);
            ip_len + 6
        };
        wire::put_u16(out, at, 0);
        let addresses = if out[0] >> 4 == 6 { &out[8..40] } else { &out[12..20] };
        let pseudo = checksum::add(u16::from(self.protocol), behind as u16);
        let sum = checksum::add(checksum::sum(addresses), checksum::sum(&out[ip_len..]));
        let checksum = !checksum::add(pseudo, sum);
        let none = self.protocol == wire::UDP && checksum == 0;
        wire::put_u16(out, at, if none { 0xffff } else { checksum });
    }

    fn data(&self, n: usize) -> &'a [u8] {
        let data = &self.packet[self.header_len..];
        let from = (n * self.size).min(data.len());
        &data[from..data.len().min(from + self.size)]
    }
}

// linux/virtio_net.h
const NEEDS_CHECKSUM: u8 = 1;
/// A packet of the wire.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP, `VIRTIO_NET_HDR_GSO_UDP_L4`.
pub const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{arbitrary, packets};

    fn cut(packet: &[u8], kind: u8, size: u16) -> Vec<Vec<u8>> {
        let ip = Ip::new_checked(packet).unwrap();
        let offload = Offload { needs_checksum: true, kind, size, ..Offload::default() };
        let large = Large::new_checked(&ip, &offload).unwrap();
        let write = |n| {
            let mut out = vec![0xaa; large.segment_len()];
            large.write(n, &mut out);
            out.truncate(large.len(n));
            out
        };
        (0..large.count()).map(write).collect()
    }

    #[test]
    fn the_header_of_the_device_is_read_and_written() {
        let bytes = [1, 0x81, 54, 0, 0x78, 5, 34, 0, 16, 0];
        let offload = Offload::parse(&bytes);
        assert_eq!((offload.needs_checksum, offload.kind), (true, GSO_TCPV4));
        assert_eq!(offload.size, u16::from_ne_bytes([0x78, 5]));
        assert_eq!(offload.bytes()[2..], bytes[2..]);
        assert_eq!(Offload::default().bytes(), [0; 10]);
    }

    #[test]
    fn a_large_tcp_packet_becomes_those_that_its_sender_would_have_sent() {
        let data: Vec<u8> = (0..250).collect();
        let large = packets::tcp4(1000, wire::ACK | wire::PSH | wire::FIN | wire::CWR, &data);
        let parts = cut(&large, GSO_TCPV4, 100);
        assert_eq!(parts.len(), 3);
        for (n, part) in parts.iter().enumerate() {
            assert!(packets::is_right(part));
            let ip = Ip::new_checked(part).unwrap();
            let tcp = Tcp::new_checked(ip.payload()).unwrap();
            assert_eq!(ip.ttl(), 63);
            assert_eq!(tcp.sequence(), 1000 + 100 * n as u32);
            let last = if n == 2 { wire::PSH | wire::FIN } else { 0 };
            let first = if n == 0 { wire::CWR } else { 0 };
            assert_eq!(tcp.flags(), wire::ACK | last | first);
            let Ip::V4(v4) = ip else { panic!() };
            assert_eq!(v4.identification(), 0x1234 + n as u16);
            assert_eq!(
                ip.payload()[tcp.header_len()..],
                data[100 * n..data.len().min(100 * n + 100)]
            );
        }
    }

    #[test]
    fn what_is_not_as_it_is_described_is_refused() {
        let packet = packets::tcp4(1, wire::ACK, b"hello");
        let ip = Ip::new_checked(&packet).unwrap();
        let refused = |kind, size| {
            let offload = Offload { kind, size, ..Offload::default() };
            Large::new_checked(&ip, &offload).is_err()
        };
        assert!(!refused(GSO_TCPV4, 100));
        assert!(refused(GSO_TCPV4, 0));
        assert!(refused(GSO_TCPV6, 100));
        assert!(refused(GSO_UDP, 100));
        assert!(refused(3, 100), "UDP fragments are not asked for");
        let bad = |start, offset, packet: &mut [u8]| {
            let (checksum_start, checksum_offset) = (start, offset);
            let offload = Offload {
                needs_checksum: true,
                checksum_start,
                checksum_offset,
                ..Offload::default()
            };
            complete_checksum(packet, &offload)
        };
        let mut packet = packet.clone();
        assert!(bad(20, 16, &mut packet).is_ok());
        for (start, offset) in [(20, 9999), (9999, 16), (u16::MAX, u16::MAX), (0, 10), (50, 6)] {
            assert_eq!(bad(start, offset, &mut packet), Err(PacketError::BadOffload));
        }
    }

    #[test]
    fn a_checksum_that_was_left_out_is_filled_in() {
        for right in [
            packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, b"odd"),
            packets::udp6("fd00:1::2", "fd00:2::3", 64, b"hello"),
        ] {
            let ip = Ip::new_checked(&right).unwrap();
            let (start, pseudo) = (ip.header_len(), ip.pseudo_sum(wire::UDP, ip.payload().len()));
            let mut packet = right.clone();
            wire::put_u16(&mut packet, start + 6, pseudo);
            let offload = Offload {
                needs_checksum: true,
                checksum_start: start as u16,
                checksum_offset: 6,
                ..Offload::default()
            };
            complete_checksum(&mut packet, &offload).unwrap();
            assert_eq!(packet, right);
        }
    }

    #[test]
    fn a_checksum_of_udp_that_is_0_is_written_as_the_other_zero() {
        let udp = |data: &[u8]| packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, data);
        // The checksum without data, as data, makes it 0.
        let mut packet = udp(&udp(&[0; 2])[26..28]);
        let ip = Ip::new_checked(&packet).unwrap();
        let pseudo = ip.pseudo_sum(wire::UDP, ip.payload().len());
        assert_eq!(cut(&packet, GSO_UDP, 100)[0][26..28], [0xff; 2]);
        wire::put_u16(&mut packet, 26, pseudo);
        let (checksum_start, checksum_offset) = (20, 6);
        let offload =
            Offload { needs_checksum: true, checksum_start, checksum_offset, ..Offload::default() };
        complete_checksum(&mut packet, &offload).unwrap();
        assert_eq!(packet[26..28], [0xff; 2]);
    }

    proptest! {
        #[test]
        fn parts_joined_are_the_whole(
            data in proptest::collection::vec(any::<u8>(), 1..3000), size in 1u16..1500, v6: bool, udp: bool,
        ) {
            let (large, kind) = match (v6, udp) {
                (false, false) => (packets::tcp4(u32::MAX - 5, wire::ACK, &data), GSO_TCPV4),
                (true, false) => (packets::tcp6(u32::MAX - 5, wire::ACK, &data), GSO_TCPV6),
                (false, true) => (packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, &data), GSO_UDP),
                (true, true) => (packets::udp6("fd00:1::2", "fd00:2::3", 64, &data), GSO_UDP),
            };
            let header = large.len() - data.len();
            let mut joined: Vec<u8> = Vec::new();
            for part in cut(&large, kind, size) {
                prop_assert!(packets::is_right(&part));
                prop_assert!(part.len() <= header + usize::from(size));
                joined.extend(&part[header..]);
            }
            prop_assert_eq!(joined, data);
        }

        #[test]
        fn no_bytes_panic(bytes in arbitrary::packet(), header: [u8; 10]) {
            let mut offload = Offload::parse(&header);
            for kind in [offload.kind, GSO_TCPV4, GSO_TCPV6, GSO_UDP] {
                offload.kind = kind;
                if let Ok(ip) = Ip::new_checked(&bytes)
                    && ip.ttl() > 1
                    && let Ok(large) = Large::new_checked(&ip, &offload)
                {
                    let mut out = vec![0; large.segment_len()];
                    for n in 0..large.count() {
                        large.write(n, &mut out);
                    }
                }
            }
            let mut packet = bytes;
            let _ = complete_checksum(&mut packet, &offload);
        }
    }
}
