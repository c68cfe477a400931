use std::{fmt, net::IpAddr};

use super::{AF_UNSPEC, CREATE_OR_REPLACE, family_of};
use crate::{
    Message, Request,
    wire::{body, push_attribute, push_ip, u32_at},
};

/// A gateway with a number, which routes then refer to ([`Via::Nexthop`](super::Via::Nexthop)).
///
/// Ten thousand routes with gateways of their own take the kernel a second, because it compares
/// each with all others; through nexthop objects they take a twentieth of that. Since Linux 5.3.
///
/// The key is the number. Numbers are shared by all programs of a namespace.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Nexthop {
    /// The number.
    pub id: u32,
    /// The device's index.
    pub link: u32,
    /// The gateway.
    pub gateway: IpAddr,
    /// The gateway is on the link although no address of ours says so.
    pub onlink: bool,
    /// Who made it, as a routing protocol number.
    pub protocol: u8,
}

impl Nexthop {
    /// A gateway that the device's addresses say is on the link.
    pub const fn new(id: u32, link: u32, gateway: IpAddr, protocol: u8) -> Self {
        Self { id, link, gateway, onlink: false, protocol }
    }

    /// Reads `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`; `None` for anything else and for groups,
    /// blackholes and nexthops without a gateway.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if !matches!(message.kind, RTM_NEWNEXTHOP | RTM_DELNEXTHOP) {
            return None;
        }
        let (header, attributes) = message.split(HEADER)?;
        let (mut id, mut link, mut gateway) = (None, None, None);
        for attribute in attributes {
            match attribute.kind {
                NHA_ID => id = attribute.u32(),
                NHA_OIF => link = attribute.u32(),
                NHA_GATEWAY => gateway = attribute.ip(),
                _ => {}
            }
        }
        Some(Self {
            id: id?,
            link: link?,
            gateway: gateway?,
            onlink: u32_at(header, 4)? & RTNH_F_ONLINK != 0,
            protocol: header[2],
        })
    }

    /// The request that creates it or puts it in the place of the one with the same number. Routes
    /// that use it follow.
    pub fn replace(&self) -> Request {
        let flags = if self.onlink { RTNH_F_ONLINK } else { 0 };
        let mut body = body(&[family_of(&self.gateway), 0, self.protocol, 0]);
        body.extend_from_slice(&flags.to_ne_bytes());
        push_attribute(&mut body, NHA_ID, &self.id.to_ne_bytes());
        push_attribute(&mut body, NHA_OIF, &self.link.to_ne_bytes());
        push_ip(&mut body, NHA_GATEWAY, self.gateway);
        Request::new(RTM_NEWNEXTHOP, CREATE_OR_REPLACE, &body)
    }

    /// The request that deletes it. The kernel drops routes that still use it, the IPv4 ones
    /// without a notification.
    pub fn delete(&self) -> Request {
        let mut body = body(&[0; HEADER]);
        push_attribute(&mut body, NHA_ID, &self.id.to_ne_bytes());
        Request::new(RTM_DELNEXTHOP, 0, &body)
    }

    /// Lists all nexthop objects.
    pub fn list() -> Request {
        Request::new(RTM_GETNEXTHOP, 0, &[AF_UNSPEC; HEADER])
    }
}

impl fmt::Display for Nexthop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nexthop {} via {} on device {}", self.id, self.gateway, self.link)
    }
}

/// The size of `struct nhmsg`.
const HEADER: usize = 8;

// linux/rtnetlink.h, linux/nexthop.h
pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const RTNH_F_ONLINK: u32 = 4;
