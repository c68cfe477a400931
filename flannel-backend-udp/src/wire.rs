//! Checked views of IP, TCP and UDP headers: `new_checked` proves that no accessor can panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{checksum, verdict::DropReason};

/// One whole IP packet of either version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ip<'a> {
    V4(Ipv4<'a>),
    V6(Ipv6<'a>),
}

/// One whole IPv4 packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ipv4<'a>(&'a [u8]);

/// One whole IPv6 packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ipv6<'a>(&'a [u8]);

impl<'a> Ip<'a> {
    pub(crate) fn new_checked(bytes: &'a [u8]) -> Result<Self, DropReason> {
        match bytes.first().ok_or(DropReason::Truncated)? >> 4 {
            4 => Ipv4::new_checked(bytes).map(Self::V4),
            6 => Ipv6::new_checked(bytes).map(Self::V6),
            _ => Err(DropReason::Version),
        }
    }

    pub(crate) fn source(&self) -> IpAddr {
        match self {
            Self::V4(it) => it.source().into(),
            Self::V6(it) => it.source().into(),
        }
    }

    pub(crate) fn destination(&self) -> IpAddr {
        match self {
            Self::V4(it) => it.destination().into(),
            Self::V6(it) => it.destination().into(),
        }
    }

    /// How many more routers the packet may pass.
    pub(crate) fn ttl(&self) -> u8 {
        match self {
            Self::V4(it) => it.0[8],
            Self::V6(it) => it.0[7],
        }
    }

    /// What follows the IP header. With IPv6 that may be an extension header.
    pub(crate) fn protocol(&self) -> u8 {
        match self {
            Self::V4(it) => it.protocol(),
            Self::V6(it) => it.0[6],
        }
    }

    /// Bytes of the IP header, extension headers not counted.
    pub(crate) fn header_len(&self) -> usize {
        match self {
            Self::V4(it) => it.header_len(),
            Self::V6(_) => IPV6_HEADER,
        }
    }

    /// What follows the IP header.
    pub(crate) fn payload(&self) -> &'a [u8] {
        &self.bytes()[self.header_len()..]
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        match self {
            Self::V4(Ipv4(bytes)) | Self::V6(Ipv6(bytes)) => bytes,
        }
    }

    /// Whether it is a part of a packet.
    pub(crate) fn is_fragment(&self) -> bool {
        match self {
            Self::V4(it) => it.more_fragments() || it.fragment_offset() != 0,
            Self::V6(it) => it.0[6] == FRAGMENT_HEADER,
        }
    }

    /// Whether the checksums of a TCP or UDP packet are right.
    pub(crate) fn has_right_checksums(&self) -> bool {
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
    pub(crate) fn pseudo_sum(&self, protocol: u8, len: usize) -> u16 {
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
    pub(crate) fn new_checked(bytes: &'a [u8]) -> Result<Self, DropReason> {
        if bytes.len() < IPV4_HEADER {
            return Err(DropReason::Truncated);
        }
        if bytes[0] >> 4 != 4 {
            return Err(DropReason::Version);
        }
        let this = Self(bytes);
        let total = usize::from(u16_at(bytes, 2));
        if this.header_len() < IPV4_HEADER || total < this.header_len() {
            return Err(DropReason::HeaderLength);
        }
        exactly(bytes, total).map(|()| this)
    }

    pub(crate) fn source(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    pub(crate) fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }

    pub(crate) fn header_len(&self) -> usize {
        usize::from(self.0[0] & 0xf) * 4
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.0[9]
    }

    pub(crate) fn identification(&self) -> u16 {
        u16_at(self.0, 4)
    }

    pub(crate) fn dont_fragment(&self) -> bool {
        self.0[6] & 0x40 != 0
    }

    pub(crate) fn more_fragments(&self) -> bool {
        self.0[6] & 0x20 != 0
    }

    /// In units of 8 bytes.
    pub(crate) fn fragment_offset(&self) -> u16 {
        u16_at(self.0, 6) & 0x1fff
    }

    pub(crate) fn has_right_checksum(&self) -> bool {
        checksum::sum(&self.0[..self.header_len()]) == 0xffff
    }

    /// Whether its options name routers to pass, or make no sense.
    pub(crate) fn has_source_route(&self) -> bool {
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
    pub(crate) fn new_checked(bytes: &'a [u8]) -> Result<Self, DropReason> {
        if bytes.len() < IPV6_HEADER {
            return Err(DropReason::Truncated);
        }
        if bytes[0] >> 4 != 6 {
            return Err(DropReason::Version);
        }
        exactly(bytes, IPV6_HEADER + usize::from(u16_at(bytes, 4))).map(|()| Self(bytes))
    }

    pub(crate) fn source(&self) -> Ipv6Addr {
        address(&self.0[8..24])
    }

    pub(crate) fn destination(&self) -> Ipv6Addr {
        address(&self.0[24..40])
    }
}

fn address(bytes: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes"))
}

fn exactly(bytes: &[u8], total: usize) -> Result<(), DropReason> {
    match bytes.len() {
        len if len < total => Err(DropReason::Truncated),
        len if len > total => Err(DropReason::Oversized),
        _ => Ok(()),
    }
}

/// Takes one from the TTL of the packet at the start of `packet`, which has been checked and has more than 0 left. The header's
/// checksum follows without a look at the rest: one that was wrong stays wrong.
pub(crate) fn decrement_ttl(packet: &mut [u8]) {
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
pub(crate) fn fill_ipv4_checksum(packet: &mut [u8], header_len: usize) {
    put_u16(packet, 10, 0);
    let checksum = !checksum::sum(&packet[..header_len]);
    put_u16(packet, 10, checksum);
}

/// The TCP header at the start of a payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp<'a>(&'a [u8]);

impl<'a> Tcp<'a> {
    /// `None` if there is no whole header.
    pub(crate) fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let len = usize::from(bytes.get(12)? >> 4) * 4;
        (len >= TCP_HEADER && len <= bytes.len()).then_some(Self(bytes))
    }

    pub(crate) fn header_len(&self) -> usize {
        usize::from(self.0[12] >> 4) * 4
    }

    pub(crate) fn sequence(&self) -> u32 {
        u32_at(self.0, 4)
    }

    pub(crate) fn flags(&self) -> u8 {
        self.0[13]
    }
}

/// The UDP header at the start of a payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Udp<'a>(&'a [u8]);

impl<'a> Udp<'a> {
    /// `None` if there is no whole header.
    pub(crate) fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= UDP_HEADER).then_some(Self(bytes))
    }

    pub(crate) fn source_port(&self) -> u16 {
        u16_at(self.0, 0)
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(u16_at(self.0, 4))
    }

    /// 0 if the sender left it out.
    pub(crate) fn checksum(&self) -> u16 {
        u16_at(self.0, 6)
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const UDP_HEADER: usize = 8;

// IANA protocol numbers.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const FRAGMENT_HEADER: u8 = 44;
pub(crate) const ICMPV6: u8 = 58;

// TCP flags, RFC 9293.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

// IPv4 options, RFC 791.
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

#[cfg(test)]
mod tests;
