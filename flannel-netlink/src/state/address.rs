use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{AF_UNSPEC, CREATE_OR_REPLACE, family_of};
use crate::{
    Message, Request,
    wire::{push_attribute, push_ip, u32_at},
};

/// An address on a device.
///
/// The key is the device and the address with its prefix. The flags from `deprecated` on are the
/// kernel's; they are read, never written and never compared.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    /// The device's index.
    pub link: u32,
    /// The address and its prefix length.
    pub address: IpNetwork,
    /// 0 for everywhere, 253 for this link, 254 for this host.
    pub scope: u8,
    /// Do not install a route for the prefix.
    pub no_prefix_route: bool,
    /// Skip duplicate address detection (IPv6), so that the address is usable at once.
    pub no_duplicate_detection: bool,
    /// The kernel no longer chooses it as a source.
    pub deprecated: bool,
    /// It has no lifetime.
    pub permanent: bool,
    /// A temporary privacy address (IPv6), or a secondary one (IPv4).
    pub temporary: bool,
    /// Not usable yet: the kernel asks whether another host has it (IPv6).
    pub tentative: bool,
    /// Another host has it (IPv6).
    pub duplicate: bool,
}

impl Address {
    /// A permanent address with universe scope that brings its prefix route.
    pub const fn new(link: u32, address: IpNetwork) -> Self {
        Self {
            link,
            address,
            scope: 0,
            no_prefix_route: false,
            no_duplicate_detection: false,
            deprecated: false,
            permanent: true,
            temporary: false,
            tentative: false,
            duplicate: false,
        }
    }

    /// Reads `RTM_NEWADDR` and `RTM_DELADDR`; `None` for anything else.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if !matches!(message.kind, RTM_NEWADDR | RTM_DELADDR) {
            return None;
        }
        let (header, attributes) = message.split(HEADER)?;
        let (mut local, mut address, mut flags) = (None, None, u32::from(header[2]));
        for attribute in attributes {
            match attribute.kind {
                IFA_ADDRESS => address = attribute.ip(),
                IFA_LOCAL => local = attribute.ip(),
                IFA_FLAGS => flags = attribute.u32()?,
                _ => {}
            }
        }
        // On a point-to-point link IFA_ADDRESS is the other end.
        let address = local.or(address)?;
        if family_of(&address) != header[0] {
            return None;
        }
        Some(Self {
            link: u32_at(header, 4)?,
            address: IpNetwork::new(address, header[1]).ok()?,
            scope: header[3],
            no_prefix_route: flags & IFA_F_NOPREFIXROUTE != 0,
            no_duplicate_detection: flags & IFA_F_NODAD != 0,
            deprecated: flags & IFA_F_DEPRECATED != 0,
            permanent: flags & IFA_F_PERMANENT != 0,
            temporary: flags & IFA_F_SECONDARY != 0,
            tentative: flags & IFA_F_TENTATIVE != 0,
            duplicate: flags & IFA_F_DADFAILED != 0,
        })
    }

    /// The request that creates it or puts it in the place of the one with the same key.
    pub fn replace(&self) -> Request {
        self.request(RTM_NEWADDR, CREATE_OR_REPLACE)
    }

    /// The request that deletes it.
    pub fn delete(&self) -> Request {
        self.request(RTM_DELADDR, 0)
    }

    /// Lists addresses, of one device or of all.
    pub fn list(filter: AddressFilter) -> Request {
        let mut body = vec![AF_UNSPEC, 0, 0, 0];
        body.extend_from_slice(&filter.link.unwrap_or(0).to_ne_bytes());
        Request::new(RTM_GETADDR, 0, &body)
    }

    /// Whether `actual` is what this one asks for.
    pub(crate) fn fits(&self, actual: &Self) -> bool {
        (self.link, self.address, self.scope, self.no_prefix_route)
            == (actual.link, actual.address, actual.scope, actual.no_prefix_route)
    }

    fn request(&self, kind: u16, flags: u16) -> Request {
        let address = self.address.ip();
        let mut body = vec![family_of(&address), self.address.prefix(), 0, self.scope];
        body.extend_from_slice(&self.link.to_ne_bytes());
        push_ip(&mut body, IFA_LOCAL, address);
        push_ip(&mut body, IFA_ADDRESS, address);
        let mut bits = IFA_F_PERMANENT;
        if self.no_prefix_route {
            bits |= IFA_F_NOPREFIXROUTE;
        }
        if self.no_duplicate_detection && matches!(address, IpAddr::V6(_)) {
            bits |= IFA_F_NODAD;
        }
        push_attribute(&mut body, IFA_FLAGS, &bits.to_ne_bytes());
        Request::new(kind, flags, &body)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} on device {}", self.address, self.link)
    }
}

/// Which addresses to list.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AddressFilter {
    /// Only those of the device with this index.
    pub link: Option<u32>,
}

/// The size of `struct ifaddrmsg`.
const HEADER: usize = 8;

// linux/rtnetlink.h, linux/if_addr.h
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_SECONDARY: u32 = 0x01;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFA_F_PERMANENT: u32 = 0x80;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
