use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

use super::{AF_INET, AF_INET6, CREATE_OR_REPLACE, IpFamily, family_of};
use crate::{
    Message, Request,
    wire::{NLA_F_NESTED, body, push_attribute, push_ip, u32_at},
};

/// A route.
///
/// The key is the destination, the table and the metric.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Route {
    /// Where to; a network without host bits.
    pub destination: IpNetwork,
    /// The routing table. 254 is `main`.
    pub table: u32,
    /// The lower of two is taken. The kernel's default is 0 for IPv4 and 1024 for IPv6.
    pub metric: u32,
    /// What to do with packets.
    pub kind: RouteKind,
    /// Who made it, as a routing protocol number.
    pub protocol: u8,
    /// 0 for everywhere, 253 for this link. IPv6 has none.
    pub scope: u8,
    /// The device's index; `None` lets the kernel find it, and with a nexthop object it is the
    /// object's. Of several gateways, the first one's.
    pub link: Option<u32>,
    /// Through what.
    pub via: Via,
    /// The gateway is on the link although no address of ours says so.
    pub onlink: bool,
    /// The source address of packets that this machine itself sends.
    pub source: Option<IpAddr>,
    /// How large packets may be, bytes, if that is less than what the device takes. Packets that may not be cut and are larger come
    /// back with this number.
    pub mtu: Option<u32>,
    /// It carries other settings, which we never write.
    pub has_metrics: bool,
}

/// What a route does with packets.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum RouteKind {
    /// Drops them silently.
    Blackhole,
    /// Another kind, by the kernel's number.
    Other(u8),
    /// Sends them on.
    Unicast,
    /// Drops them and tells the sender that there is no way.
    Unreachable,
}

/// Through what a route leads.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Via {
    /// The destination is on the link itself.
    Direct,
    /// A gateway.
    Gateway(IpAddr),
    /// A nexthop object by its number.
    Nexthop(u32),
    /// Several gateways, or a gateway of the other family or with an encapsulation: things we never
    /// write.
    Other,
}

impl Route {
    /// A unicast route in the main table with the kernel's default metric, that leads nowhere yet.
    pub fn new(destination: IpNetwork, protocol: u8) -> Self {
        let destination = canonical(destination);
        Self {
            destination,
            table: Self::MAIN,
            metric: match destination {
                IpNetwork::V4(_) => 0,
                IpNetwork::V6(_) => DEFAULT_METRIC_V6,
            },
            kind: RouteKind::Unicast,
            protocol,
            scope: 0,
            link: None,
            via: Via::Direct,
            onlink: false,
            source: None,
            mtu: None,
            has_metrics: false,
        }
    }

    /// The same through a gateway on a device.
    #[must_use]
    pub const fn via_gateway(mut self, gateway: IpAddr, link: u32) -> Self {
        self.via = Via::Gateway(gateway);
        self.link = Some(link);
        self
    }

    /// The same through a nexthop object.
    #[must_use]
    pub const fn via_nexthop(mut self, id: u32) -> Self {
        self.via = Via::Nexthop(id);
        self.link = None;
        self.onlink = false;
        self
    }

    /// The same straight to a device.
    #[must_use]
    pub const fn direct(mut self, link: u32) -> Self {
        self.via = Via::Direct;
        self.link = Some(link);
        if matches!(self.destination, IpNetwork::V4(_)) {
            self.scope = SCOPE_LINK;
        }
        self
    }

    /// The same as a route that drops packets.
    #[must_use]
    pub const fn blackhole(mut self) -> Self {
        self.kind = RouteKind::Blackhole;
        self.via = Via::Direct;
        self.link = None;
        self
    }

    /// The same as a route that drops packets and tells their senders.
    #[must_use]
    pub const fn unreachable(self) -> Self {
        let mut route = self.blackhole();
        route.kind = RouteKind::Unreachable;
        route
    }

    /// Reads `RTM_NEWROUTE` and `RTM_DELROUTE` of IPv4 and IPv6; `None` for anything else and for
    /// cached routes and those by source or type of service.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if !matches!(message.kind, RTM_NEWROUTE | RTM_DELROUTE) {
            return None;
        }
        let (header, attributes) = message.split(HEADER)?;
        let flags = u32_at(header, 8)?;
        let mut destination: IpAddr = match header[0] {
            AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        // Routes by source or type of service never stand in the place of ours.
        if flags & RTM_F_CLONED != 0 || header[2] != 0 || header[3] != 0 {
            return None;
        }
        let kind = RouteKind::from_number(header[7]);
        let mut route = Self {
            destination: IpNetwork::new(destination, 0).ok()?,
            table: header[4].into(),
            metric: 0,
            kind,
            protocol: header[5],
            scope: header[6],
            link: None,
            via: Via::Direct,
            onlink: flags & RTNH_F_ONLINK != 0,
            source: None,
            mtu: None,
            has_metrics: false,
        };
        let (mut nexthop, mut unusual) = (None, false);
        for attribute in attributes {
            match attribute.kind {
                RTA_DST => destination = attribute.ip().filter(|ip| family_of(ip) == header[0])?,
                RTA_GATEWAY => route.via = Via::Gateway(attribute.ip()?),
                RTA_NH_ID => nexthop = attribute.u32(),
                RTA_OIF => route.link = attribute.u32(),
                RTA_PREFSRC => route.source = attribute.ip(),
                RTA_PRIORITY => route.metric = attribute.u32()?,
                RTA_TABLE => route.table = attribute.u32()?,
                RTA_METRICS => {
                    for metric in attribute.nested() {
                        match metric.kind {
                            RTAX_MTU => route.mtu = metric.u32(),
                            _ => route.has_metrics = true,
                        }
                    }
                }
                RTA_MULTIPATH => {
                    // The first `struct rtnexthop`: length, flags, weight, device.
                    route.link = u32_at(attribute.value, 4);
                    unusual = true;
                }
                RTA_ENCAP | RTA_VIA => unusual = true,
                _ => {}
            }
        }
        route.destination = canonical(IpNetwork::new(destination, header[1]).ok()?);
        if let Some(id) = nexthop {
            // The kernel repeats the object's gateway and device for readers that do not know of
            // it.
            route = route.via_nexthop(id);
        } else if unusual {
            route.via = Via::Other;
        }
        // IPv6 ones say they lead to the loopback device.
        Some(match kind {
            RouteKind::Blackhole => route.blackhole(),
            RouteKind::Unreachable => route.unreachable(),
            _ => route,
        })
    }

    /// The request that creates it or puts it in the place of the first one with the same key.
    pub fn replace(&self) -> Request {
        self.request(RTM_NEWROUTE, CREATE_OR_REPLACE)
    }

    /// The request that deletes exactly this one.
    pub fn delete(&self) -> Request {
        self.request(RTM_DELROUTE, 0)
    }

    /// Lists the routes of one table and of one family.
    pub fn list(table: u32, family: IpFamily) -> Request {
        let mut body = vec![0; HEADER];
        body[0] = family.number();
        push_attribute(&mut body, RTA_TABLE, &table.to_ne_bytes());
        Request::new(RTM_GETROUTE, 0, &body)
    }

    /// Asks which route the kernel would take to `destination`.
    pub fn lookup(destination: IpAddr) -> Request {
        Self::ask(destination, 0)
    }

    /// Asks for the entry of the routing tables by which the kernel would send packets to `destination`, rules considered. Since Linux
    /// 4.13.
    pub fn lookup_match(destination: IpAddr) -> Request {
        Self::ask(destination, RTM_F_FIB_MATCH)
    }

    fn ask(destination: IpAddr, flags: u32) -> Request {
        let mut body = vec![0; HEADER];
        (body[0], body[1]) =
            (family_of(&destination), if destination.is_ipv4() { 32 } else { 128 });
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        push_ip(&mut body, RTA_DST, destination);
        Request::new(RTM_GETROUTE, 0, &body)
    }

    /// The `main` table.
    pub const MAIN: u32 = 254;

    /// The protocol of routes without a word about who made them, flanneld's among them: `RTPROT_BOOT`.
    pub const BOOT: u8 = 3;

    fn request(&self, kind: u16, flags: u16) -> Request {
        let family = family_of(&self.destination.ip());
        let mut body = body(&[0; HEADER]);
        body[0] = family;
        body[1] = self.destination.prefix();
        // Tables above 255 are in the attribute only.
        body[4] = u8::try_from(self.table).unwrap_or(0);
        body[5] = self.protocol;
        body[6] = self.scope;
        body[7] = self.kind.number();
        if self.onlink {
            body[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        }
        push_ip(&mut body, RTA_DST, self.destination.ip());
        push_attribute(&mut body, RTA_TABLE, &self.table.to_ne_bytes());
        if self.metric != 0 {
            push_attribute(&mut body, RTA_PRIORITY, &self.metric.to_ne_bytes());
        }
        if let Some(link) = self.link {
            push_attribute(&mut body, RTA_OIF, &link.to_ne_bytes());
        }
        match self.via {
            Via::Gateway(gateway) => push_ip(&mut body, RTA_GATEWAY, gateway),
            Via::Nexthop(id) => push_attribute(&mut body, RTA_NH_ID, &id.to_ne_bytes()),
            Via::Direct | Via::Other => {}
        }
        if let Some(source) = self.source {
            push_ip(&mut body, RTA_PREFSRC, source);
        }
        // Which settings it has does not matter to the one who deletes it.
        if let Some(mtu) = self.mtu.filter(|_| kind == RTM_NEWROUTE) {
            let mut metrics = Vec::new();
            push_attribute(&mut metrics, RTAX_MTU, &mtu.to_ne_bytes());
            push_attribute(&mut body, RTA_METRICS | NLA_F_NESTED, &metrics);
        }
        Request::new(kind, flags, &body)
    }
}

impl RouteKind {
    const fn from_number(number: u8) -> Self {
        match number {
            RTN_UNICAST => Self::Unicast,
            RTN_BLACKHOLE => Self::Blackhole,
            RTN_UNREACHABLE => Self::Unreachable,
            other => Self::Other(other),
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Blackhole => RTN_BLACKHOLE,
            Self::Other(number) => number,
            Self::Unicast => RTN_UNICAST,
            Self::Unreachable => RTN_UNREACHABLE,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RouteKind::Blackhole => "blackhole route",
            RouteKind::Other(_) | RouteKind::Unicast => "route",
            RouteKind::Unreachable => "unreachable route",
        };
        write!(f, "{kind} {}", self.destination)?;
        match self.via {
            Via::Direct => {}
            Via::Gateway(gateway) => write!(f, " via {gateway}")?,
            Via::Nexthop(id) => write!(f, " via nexthop {id}")?,
            Via::Other => write!(f, " via something else")?,
        }
        if let Some(link) = self.link {
            write!(f, " on device {link}")?;
        }
        match self.metric == Self::new(self.destination, 0).metric {
            true => Ok(()),
            false => write!(f, " with metric {}", self.metric),
        }
    }
}

fn canonical(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).expect("the prefix was valid before")
}

/// `IP6_RT_PRIO_USER`, which the kernel puts in when none is given.
const DEFAULT_METRIC_V6: u32 = 1024;
const SCOPE_LINK: u8 = 253;
/// The size of `struct rtmsg`.
const HEADER: usize = 12;

// linux/rtnetlink.h
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const RTN_UNICAST: u8 = 1;
const RTN_BLACKHOLE: u8 = 6;
const RTN_UNREACHABLE: u8 = 7;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;
const RTM_F_FIB_MATCH: u32 = 0x2000;
