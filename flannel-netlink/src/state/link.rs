use std::{fmt, net::IpAddr};

use super::MacAddress;
use crate::{
    Attribute, Message, Request,
    wire::{push_attribute, u32_at},
};

/// A network device.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Link {
    /// The kernel's number for it in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its Ethernet address, if it has one.
    pub mac: Option<MacAddress>,
    /// The largest packet it takes, bytes.
    pub mtu: u32,
    /// How many packets wait at most for whoever takes them on: for a TUN device, in each of its queues.
    pub queue: u32,
    /// It is set up by its owner.
    pub up: bool,
    /// It is up and can carry packets: the cable is in, the other end of the pair is up.
    pub running: bool,
    /// The loopback device.
    pub loopback: bool,
    /// The index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// The index of the device below it, or of the other end of a veth pair.
    pub parent: Option<u32>,
    /// The kernel gives it an IPv6 link-local address when it comes up.
    pub link_local: bool,
}

/// What a device is.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// Another kind by its name for the kernel; empty for hardware and loopback.
    Other(String),
    /// One end of a pair.
    Veth,
    /// A VXLAN device.
    Vxlan(Vxlan),
}

/// The attributes of a VXLAN device.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Vxlan {
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port; `None` takes the kernel's 8472.
    pub port: Option<u16>,
    /// The source address of encapsulated packets.
    pub local: Option<IpAddr>,
    /// The index of the device it is bound to, 0 in a [`LinkSpec`](crate::LinkSpec) for none. Such a device vanishes with the one it is bound to.
    pub parent: Option<u32>,
    /// The address for frames to unknown destinations; unspecified in a [`LinkSpec`](crate::LinkSpec) for none.
    pub group: Option<IpAddr>,
    /// It learns Ethernet addresses from what it receives.
    pub learning: bool,
    /// The type of service of encapsulated packets; 0 for none, 1 for that of the packet inside.
    pub tos: u8,
    /// The time to live of encapsulated packets; 0 for the kernel's choice.
    pub ttl: u8,
    /// It carries group policy marks.
    pub gbp: bool,
    /// It reports unknown Ethernet addresses.
    pub l2miss: bool,
    /// It reports unknown IP addresses.
    pub l3miss: bool,
    /// It answers ARP itself.
    pub proxy: bool,
    /// It short-cuts routes.
    pub rsc: bool,
}

impl Vxlan {
    /// A device with this identifier that does not learn.
    pub fn new(vni: u32) -> Self {
        Self { vni, ..Self::default() }
    }
}

impl Link {
    /// Reads `RTM_NEWLINK` and `RTM_DELLINK`; `None` for anything else and for the bridge's view of
    /// its ports.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if !matches!(message.kind, RTM_NEWLINK | RTM_DELLINK) {
            return None;
        }
        let (header, attributes) = message.split(HEADER)?;
        if header[0] != 0 {
            return None;
        }
        let flags = u32_at(header, 8)?;
        let mut link = Self {
            index: u32_at(header, 4)?,
            name: String::new(),
            kind: LinkKind::Other(String::new()),
            mac: None,
            mtu: 0,
            queue: 0,
            up: flags & IFF_UP != 0,
            running: flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
            loopback: flags & IFF_LOOPBACK != 0,
            controller: None,
            parent: None,
            link_local: false,
        };
        for attribute in attributes {
            match attribute.kind {
                IFLA_AF_SPEC => link.link_local = makes_link_local(&attribute),
                IFLA_IFNAME => link.name = attribute.text()?.to_owned(),
                IFLA_ADDRESS => link.mac = attribute.value.try_into().ok().map(MacAddress::new),
                IFLA_MTU => link.mtu = attribute.u32()?,
                IFLA_TXQLEN => link.queue = attribute.u32()?,
                IFLA_LINK => link.parent = attribute.u32().filter(|index| *index != 0),
                IFLA_MASTER => link.controller = attribute.u32().filter(|index| *index != 0),
                IFLA_LINKINFO => link.kind = kind_of(&attribute),
                _ => {}
            }
        }
        Some(link)
    }

    /// Lists all devices.
    pub fn list() -> Request {
        Request::new(RTM_GETLINK, 0, &[0; HEADER])
    }

    /// Asks for the device of this name.
    pub fn by_name(name: &str) -> Request {
        let mut body = vec![0; HEADER];
        push_attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        Request::new(RTM_GETLINK, 0, &body)
    }

    /// Asks for the device of this index.
    pub fn by_index(index: u32) -> Request {
        Request::new(RTM_GETLINK, 0, &header(index))
    }

    /// The request that deletes the device of this index.
    pub fn delete(index: u32) -> Request {
        Request::new(RTM_DELLINK, 0, &header(index))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}", self.name)
    }
}

fn header(index: u32) -> Vec<u8> {
    let mut body = vec![0; HEADER];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body
}

/// False where the device has no IPv6.
fn makes_link_local(families: &Attribute<'_>) -> bool {
    let ipv6 = families.nested().filter(|family| family.kind == u16::from(super::AF_INET6));
    let mode = ipv6
        .flat_map(|family| family.nested())
        .find_map(|attribute| (attribute.kind == IFLA_INET6_ADDR_GEN_MODE).then(|| attribute.u8()));
    mode.flatten().is_some_and(|mode| mode != IN6_ADDR_GEN_MODE_NONE)
}

fn kind_of(info: &Attribute<'_>) -> LinkKind {
    let name = info.nested().find(|attribute| attribute.kind == IFLA_INFO_KIND);
    let data = info.nested().find(|attribute| attribute.kind == IFLA_INFO_DATA);
    match name.and_then(|name| name.text()).unwrap_or_default() {
        "bridge" => LinkKind::Bridge,
        "veth" => LinkKind::Veth,
        "vxlan" => LinkKind::Vxlan(data.map_or_else(Vxlan::default, |data| vxlan_of(&data))),
        other => LinkKind::Other(other.to_owned()),
    }
}

fn vxlan_of(data: &Attribute<'_>) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for attribute in data.nested() {
        let on = attribute.u8() == Some(1);
        match attribute.kind {
            IFLA_VXLAN_ID => vxlan.vni = attribute.u32().unwrap_or_default(),
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => vxlan.group = attribute.ip(),
            IFLA_VXLAN_LINK => vxlan.parent = attribute.u32().filter(|index| *index != 0),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = attribute.ip(),
            IFLA_VXLAN_TTL => vxlan.ttl = attribute.u8().unwrap_or_default(),
            IFLA_VXLAN_TOS => vxlan.tos = attribute.u8().unwrap_or_default(),
            IFLA_VXLAN_LEARNING => vxlan.learning = on,
            IFLA_VXLAN_PROXY => vxlan.proxy = on,
            IFLA_VXLAN_RSC => vxlan.rsc = on,
            IFLA_VXLAN_L2MISS => vxlan.l2miss = on,
            IFLA_VXLAN_L3MISS => vxlan.l3miss = on,
            IFLA_VXLAN_PORT => vxlan.port = attribute.u16_be(),
            // A flag without a value.
            IFLA_VXLAN_GBP => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

/// The size of `struct ifinfomsg`.
const HEADER: usize = 16;

// linux/rtnetlink.h, linux/if_link.h, linux/if.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_TTL: u16 = 5;
const IFLA_VXLAN_TOS: u16 = 6;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_RSC: u16 = 12;
const IFLA_VXLAN_L2MISS: u16 = 13;
const IFLA_VXLAN_L3MISS: u16 = 14;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_RUNNING: u32 = 0x40;
