use std::{fmt, net::IpAddr};

use super::{
    AF_BRIDGE, CREATE_OR_REPLACE, MacAddress,
    neighbour::{
        NDA_CACHEINFO, NDA_DST, NDA_LLADDR, NUD_PERMANENT, RTM_DELNEIGH, RTM_GETNEIGH,
        RTM_NEWNEIGH, header, split,
    },
};
use crate::{
    Message, Request,
    wire::{push_attribute, push_ip, u16_at, u32_at},
};

/// To which remote address a VXLAN device sends frames for an Ethernet address.
///
/// The key is the device and the Ethernet address.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ForwardingEntry {
    /// The device's index.
    pub link: u32,
    /// The Ethernet address of the other end.
    pub mac: MacAddress,
    /// The underlay address of the other end; `None` in entries of other kinds of device.
    pub remote: Option<IpAddr>,
    /// The UDP port, where it is not the device's own.
    pub port: Option<u16>,
    /// It was set by hand and does not age.
    pub permanent: bool,
}

impl ForwardingEntry {
    /// A permanent entry with the device's own port.
    pub const fn new(link: u32, mac: MacAddress, remote: IpAddr) -> Self {
        Self { link, mac, remote: Some(remote), port: None, permanent: true }
    }

    /// Reads `RTM_NEWNEIGH` and `RTM_DELNEIGH` of the bridge family for entries of the device
    /// itself; `None` for anything else.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = split(message, &[AF_BRIDGE])?;
        if header[10] & NTF_SELF == 0 {
            return None;
        }
        let (mut mac, mut remote, mut port) = (None, None, None);
        for attribute in attributes {
            match attribute.kind {
                NDA_DST => remote = attribute.ip(),
                NDA_LLADDR => mac = attribute.value.try_into().ok().map(MacAddress::new),
                NDA_PORT => port = attribute.u16_be(),
                _ => {}
            }
        }
        Some(Self {
            link: u32_at(header, 4)?,
            mac: mac?,
            remote,
            port,
            permanent: u16_at(header, 8)? & NUD_PERMANENT != 0,
        })
    }

    /// Whether a message tells of an entry as the device has it. Linux before 6.14 also tells, after the device did, of what somebody
    /// asked for, without where it leads to; what a device has comes with its age.
    pub(crate) fn is_of_device(message: &Message<'_>) -> bool {
        let attributes = split(message, &[AF_BRIDGE]).into_iter().flat_map(|(_, it)| it);
        attributes.into_iter().any(|attribute| attribute.kind == NDA_CACHEINFO)
    }

    /// The request that creates it or puts it in the place of the one with the same key.
    pub fn replace(&self) -> Request {
        let mut body = header(AF_BRIDGE, self.link, NUD_PERMANENT, NTF_SELF);
        push_attribute(&mut body, NDA_LLADDR, &self.mac.octets());
        if let Some(remote) = self.remote {
            push_ip(&mut body, NDA_DST, remote);
        }
        if let Some(port) = self.port {
            push_attribute(&mut body, NDA_PORT, &port.to_be_bytes());
        }
        Request::new(RTM_NEWNEIGH, CREATE_OR_REPLACE, &body)
    }

    /// The request that deletes it, wherever it points to.
    pub fn delete(&self) -> Request {
        let mut body = header(AF_BRIDGE, self.link, 0, NTF_SELF);
        push_attribute(&mut body, NDA_LLADDR, &self.mac.octets());
        Request::new(RTM_DELNEIGH, 0, &body)
    }

    /// Lists the entries of one device.
    pub fn list(link: u32) -> Request {
        Request::new(RTM_GETNEIGH, 0, &header(AF_BRIDGE, link, 0, 0))
    }
}

impl fmt::Display for ForwardingEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forwarding entry {} on device {}", self.mac, self.link)?;
        self.remote.map_or(Ok(()), |remote| write!(f, " to {remote}"))
    }
}

// linux/neighbour.h
const NTF_SELF: u8 = 0x02;
const NDA_PORT: u16 = 6;
