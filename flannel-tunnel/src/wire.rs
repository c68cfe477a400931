//! Checked views of IP, TCP and UDP headers: `new_checked` proves that no accessor can panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{checksum, error::PacketError};

/// One whole IP packet of either version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ip<'a> {
    /// IPv4
    V4(Ipv4<'a>),
    /// IPv6
    V6(Ipv6<'a>),
}

/// One whole IPv4 packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ipv4<'a>(&'a [u8]);

/// One whole IPv6 packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ipv6<'a>(&'a [u8]);

impl<'a> Ip<'a> {
    /// The packet that `bytes` are, whole and nothing but that.
    ///
    /// # Errors
    ///
    /// [`PacketError`] says what they are instead.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        match bytes.first().ok_or(PacketError::Truncated)? >> 4 {
            4 => Ipv4::new_checked(bytes).map(Self::V4),
            6 => Ipv6::new_checked(bytes).map(Self::V6),
            _ => Err(PacketError::Version),
        }
    }

    /// Who sent it.
    pub fn source(&self) -> IpAddr {
        match self {
            Self::V4(it) => it.source().into(),
            Self::V6(it) => it.source().into(),
        }
    }

    /// Who it is for.
    pub fn destination(&self) -> IpAddr {
        match self {
            Self::V4(it) => it.destination().into(),
            Self::V6(it) => it.destination().into(),
        }
    }

    /// How many more routers the packet may pass.
    pub fn ttl(&self) -> u8 {
        match self {
            Self::V4(it) => it.0[8],
            Self::V6(it) => it.0[7],
        }
    }

    /// What follows the IP header. With IPv6 that may be an extension header.
    pub fn protocol(&self) -> u8 {
        match self {
            Self::V4(it) => it.protocol(),
            Self::V6(it) => it.0[6],
        }
    }

    /// Bytes of the IP header, extension headers not counted.
    pub fn header_len(&self) -> usize {
        match self {
            Self::V4(it) => it.header_len(),
            Self::V6(_) => IPV6_HEADER,
        }
    }

    /// What follows the IP header.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes()[self.header_len()..]
    }

    /// The whole packet.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Self::V4(Ipv4(bytes)) | Self::V6(Ipv6(bytes)) => bytes,
        }
    }

    /// Whether it is a part of a packet.
    pub fn is_fragment(&self) -> bool {
        match self {
            Self::V4(it) => it.more_fragments() || it.fragment_offset() != 0,
            Self::V6(it) => it.0[6] == FRAGMENT_HEADER,
        }
    }

    /// Whether the checksums of a TCP or UDP packet are right.
    pub fn has_right_checksums(&self) -> bool {
        let header = match self {
            Self::V4(v4) => v4.has_right_checksum(),
            Self::V6(_) => true,
        };
        let (protocol, payload) = (self.protocol(), self.payload());
        let pseudo = self.pseudo_sum(protocol, payload.len());
        header && checksum::add(pseudo, checksum::sum(payload)) == 0xffff
    }

    /// The sum of the pseudo header that TCP and UDP checksums cover, RFC 9293 section 3.1 and RFC 8200 section 8.1, for `len`
    /// bytes behind the IP header.
    pub fn pseudo_sum(&self, protocol: u8, len: usize) -> u16 {
        let addresses = match self {
            Self::V4(it) => &it.0[12..20],
            Self::V6(it) => &it.0[8..40],
        };
        // A packet is at most 64 KiB long.
        checksum::add(
            checksum::sum(addresses),
            checksum::add(u16::from(protocol), u16::try_from(len).unwrap_or(u16::MAX)),
        )
    }
}

impl<'a> Ipv4<'a> {
    /// The packet that `bytes` are, whole and nothing but that.
    ///
    /// # Errors
    ///
    /// [`PacketError`] says what they are instead.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        if bytes.len() < IPV4_HEADER {
            return Err(PacketError::Truncated);
        }
        if bytes[0] >> 4 != 4 {
            return Err(PacketError::Version);
        }
        let this = Self(bytes);
        let total = usize::from(u16_at(bytes, 2));
        if this.header_len() < IPV4_HEADER || total < this.header_len() {
            return Err(PacketError::HeaderLength);
        }
        exactly(bytes, total).map(|()| this)
    }

    /// Who sent it.
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    /// Who it is for.
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }

    /// Bytes of the header, options counted.
    pub fn header_len(&self) -> usize {
        usize::from(self.0[0] & 0xf) * 4
    }

    /// What follows the header.
    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// What the fragments of one packet have in common.
    pub fn identification(&self) -> u16 {
        u16_at(self.0, 4)
    }

    /// Whether routers must not cut it.
    pub fn dont_fragment(&self) -> bool {
        self.0[6] & 0x40 != 0
    }

    /// Whether it is not the last part of its packet.
    pub fn more_fragments(&self) -> bool {
        self.0[6] & 0x20 != 0
    }

    /// In units of 8 bytes.
    pub fn fragment_offset(&self) -> u16 {
        u16_at(self.0, 6) & 0x1fff
    }

    /// Whether the checksum of the header is right.
    pub fn has_right_checksum(&self) -> bool {
        checksum::sum(&self.0[..self.header_len()]) == 0xffff
    }

    /// Whether its options name routers to pass, or make no sense.
    pub fn has_source_route(&self) -> bool {
        let mut options = &self.0[IPV4_HEADER..self.header_len()];
        while let [kind, rest @ ..] = options {
            options = match *kind {
                OPTION_END => return false,
                OPTION_NOTHING => rest,
                LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return true,
                _ => match rest.first().map(|len| usize::from(*len)) {
                    Some(len) if len >= 2 && len <= options.len() => &options[len..],
                    _ => return true,
                },
            };
        }
        false
    }
}

impl<'a> Ipv6<'a> {
    /// The packet that `bytes` are, whole and nothing but that.
    ///
    /// # Errors
    ///
    /// [`PacketError`] says what they are instead.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        if bytes.len() < IPV6_HEADER {
            return Err(PacketError::Truncated);
        }
        if bytes[0] >> 4 != 6 {
            return Err(PacketError::Version);
        }
        exactly(bytes, IPV6_HEADER + usize::from(u16_at(bytes, 4))).map(|()| Self(bytes))
    }

    /// Who sent it.
    pub fn source(&self) -> Ipv6Addr {
        address(&self.0[8..24])
    }

    /// Who it is for.
    pub fn destination(&self) -> Ipv6Addr {
        address(&self.0[24..40])
    }
}

fn address(bytes: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes"))
}

fn exactly(bytes: &[u8], total: usize) -> Result<(), PacketError> {
    match bytes.len() {
        len if len < total => Err(PacketError::Truncated),
        len if len > total => Err(PacketError::Oversized),
        _ => Ok(()),
    }
}

/// Takes one from the TTL of the packet at the start of `packet`, which has been checked and has more than 0 left. The header's
/// checksum follows without a look at the rest: one that was wrong stays wrong.
pub fn decrement_ttl(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] = packet[7].saturating_sub(1);
        return;
    }
    let before = u16_at(packet, 8);
    packet[8] = packet[8].saturating_sub(1);
    let checksum = checksum::updated(u16_at(packet, 10), before, u16_at(packet, 8));
    put_u16(packet, 10, checksum);
}

/// Puts the right checksum into the IPv4 header at the start of `packet`.
pub fn fill_ipv4_checksum(packet: &mut [u8], header_len: usize) {
    put_u16(packet, 10, 0);
    let checksum = !checksum::sum(&packet[..header_len]);
    put_u16(packet, 10, checksum);
}

/// The TCP header at the start of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a>(&'a [u8]);

impl<'a> Tcp<'a> {
    /// `None` if there is no whole header.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let len = usize::from(bytes.get(12)? >> 4) * 4;
        (len >= TCP_HEADER && len <= bytes.len()).then_some(Self(bytes))
    }

    /// Bytes of the header, options counted.
    pub fn header_len(&self) -> usize {
        usize::from(self.0[12] >> 4) * 4
    }

    /// The number of the first byte that it carries.
    pub fn sequence(&self) -> u32 {
        u32_at(self.0, 4)
    }

    /// The flags, such as [`ACK`].
    pub fn flags(&self) -> u8 {
        self.0[13]
    }
}

/// The UDP header at the start of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a>(&'a [u8]);

impl<'a> Udp<'a> {
    /// `None` if there is no whole header.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= UDP_HEADER).then_some(Self(bytes))
    }

    /// The sender's port.
    pub fn source_port(&self) -> u16 {
        u16_at(self.0, 0)
    }

    /// Bytes of header and data, as the header says.
    pub fn total_len(&self) -> usize {
        usize::from(u16_at(self.0, 4))
    }

    /// 0 if the sender left it out.
    pub fn checksum(&self) -> u16 {
        u16_at(self.0, 6)
    }
}

/// The number in network byte order at `at`.
///
/// # Panics
///
/// If `bytes` ends before.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The number in network byte order at `at`.
///
/// # Panics
///
/// If `bytes` ends before.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes a number in network byte order to `at`.
///
/// # Panics
///
/// If `bytes` ends before.
pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Bytes of a header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of a header without extension headers.
pub const IPV6_HEADER: usize = 40;
/// Bytes of a header without options.
pub const TCP_HEADER: usize = 20;
/// Bytes of a header.
pub const UDP_HEADER: usize = 8;

// IANA protocol numbers.
/// ICMP
pub const ICMP: u8 = 1;
/// TCP
pub const TCP: u8 = 6;
/// UDP
pub const UDP: u8 = 17;
/// A fragment of IPv6.
pub const FRAGMENT_HEADER: u8 = 44;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

// TCP flags, RFC 9293.
/// The sender has no more to say.
pub const FIN: u8 = 0x01;
/// What is here is to be handed on.
pub const PSH: u8 = 0x08;
/// It says what has come.
pub const ACK: u8 = 0x10;
/// The sender has slowed down.
pub const CWR: u8 = 0x80;

// IPv4 options, RFC 791.
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

#[cfg(test)]
mod tests;
