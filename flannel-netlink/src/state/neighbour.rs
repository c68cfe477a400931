use std::{fmt, net::IpAddr};

use super::{AF_INET, AF_INET6, AF_UNSPEC, CREATE_OR_REPLACE, MacAddress, family_of};
use crate::{
    Message, Request,
    wire::{body, push_attribute, push_ip, u16_at, u32_at},
};

/// Which Ethernet address an IP address has on a device: an entry of the ARP or neighbour discovery
/// table.
///
/// The key is the device and the IP address.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Neighbour {
    /// The device's index.
    pub link: u32,
    /// The IP address.
    pub address: IpAddr,
    /// Its Ethernet address; `None` while the kernel looks for it.
    pub mac: Option<MacAddress>,
    /// It was set by hand and does not age.
    pub permanent: bool,
}

impl Neighbour {
    /// A permanent entry.
    pub const fn new(link: u32, address: IpAddr, mac: MacAddress) -> Self {
        Self { link, address, mac: Some(mac), permanent: true }
    }

    /// Reads `RTM_NEWNEIGH` and `RTM_DELNEIGH` of IPv4 and IPv6; `None` for anything else.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = split(message, &[AF_INET, AF_INET6])?;
        let (mut address, mut mac) = (None, None);
        for attribute in attributes {
            match attribute.kind {
                NDA_DST => address = attribute.ip(),
                NDA_LLADDR => mac = attribute.value.try_into().ok().map(MacAddress::new),
                _ => {}
            }
        }
        Some(Self {
            link: u32_at(header, 4)?,
            address: address.filter(|address| family_of(address) == header[0])?,
            mac,
            permanent: u16_at(header, 8)? & NUD_PERMANENT != 0,
        })
    }

    /// The request that creates it or puts it in the place of the one with the same key.
    pub fn replace(&self) -> Request {
        let mut body = header(family_of(&self.address), self.link, NUD_PERMANENT, 0);
        push_ip(&mut body, NDA_DST, self.address);
        if let Some(mac) = self.mac {
            push_attribute(&mut body, NDA_LLADDR, &mac.octets());
        }
        Request::new(RTM_NEWNEIGH, CREATE_OR_REPLACE, &body)
    }

    /// The request that deletes it.
    pub fn delete(&self) -> Request {
        let mut body = header(family_of(&self.address), self.link, 0, 0);
        push_ip(&mut body, NDA_DST, self.address);
        Request::new(RTM_DELNEIGH, 0, &body)
    }

    /// Lists the IPv4 and IPv6 entries of one device.
    pub fn list(link: u32) -> Request {
        let mut body = header(AF_UNSPEC, 0, 0, 0);
        push_attribute(&mut body, NDA_IFINDEX, &link.to_ne_bytes());
        Request::new(RTM_GETNEIGH, 0, &body)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neighbour {} on device {}", self.address, self.link)?;
        self.mac.map_or(Ok(()), |mac| write!(f, " at {mac}"))
    }
}

/// `struct ndmsg`.
pub(super) fn header(family: u8, link: u32, state: u16, flags: u8) -> Vec<u8> {
    let mut body = body(&[family, 0, 0, 0]);
    body.extend_from_slice(&link.to_ne_bytes());
    body.extend_from_slice(&state.to_ne_bytes());
    body.extend_from_slice(&[flags, RTN_UNICAST]);
    if state == 0 {
        // A listing with a type is refused, and a deletion has none.
        body[11] = 0;
    }
    body
}

/// The header and attributes of a neighbour message of one of these families.
pub(super) fn split<'a>(
    message: &Message<'a>,
    families: &[u8],
) -> Option<(&'a [u8], impl Iterator<Item = crate::Attribute<'a>> + use<'a>)> {
    if !matches!(message.kind, RTM_NEWNEIGH | RTM_DELNEIGH) {
        return None;
    }
    let (header, attributes) = message.split(HEADER)?;
    families.contains(&header[0]).then_some((header, attributes))
}

/// The size of `struct ndmsg`.
const HEADER: usize = 12;
const RTN_UNICAST: u8 = 1;

// linux/rtnetlink.h, linux/neighbour.h
pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
pub(super) const RTM_GETNEIGH: u16 = 30;
pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
pub(super) const NDA_CACHEINFO: u16 = 3;
const NDA_IFINDEX: u16 = 8;
pub(super) const NUD_PERMANENT: u16 = 0x80;
