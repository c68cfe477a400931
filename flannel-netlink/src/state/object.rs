use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network};

use super::{Address, ForwardingEntry, MacAddress, Neighbour, Nexthop, Route};
use crate::{Message, Request};

/// Something that a program puts into the kernel and that can be compared, replaced and deleted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Object {
    /// An address on a device.
    Address(Address),
    /// A forwarding entry of a VXLAN device.
    ForwardingEntry(ForwardingEntry),
    /// An entry of the neighbour table.
    Neighbour(Neighbour),
    /// A nexthop object.
    Nexthop(Nexthop),
    /// A route.
    Route(Route),
}

/// What makes two objects exclude each other.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Key {
    /// The device's index and the address with its prefix length.
    Address(u32, IpNetwork),
    /// The number.
    Nexthop(u32),
    /// The device's index and the Ethernet address.
    ForwardingEntry(u32, MacAddress),
    /// The device's index and the IP address.
    Neighbour(u32, IpAddr),
    /// Destination, table and metric. Only here the kernel may hold several objects under one key:
    /// the first is used.
    Route(IpNetwork, u32, u32),
}

/// The kinds of [`Object`], each behind those that it may need.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Address,
    Nexthop,
    ForwardingEntry,
    Neighbour,
    Route,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Address, Self::Nexthop, Self::ForwardingEntry, Self::Neighbour, Self::Route];
}

impl Key {
    /// The lowest of this kind.
    pub(crate) const fn first(kind: Kind) -> Self {
        const NOWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
        let everywhere = match Ipv4Network::new_checked(NOWHERE, 0) {
            Some(network) => IpNetwork::V4(network),
            None => panic!("0 is a prefix length"),
        };
        match kind {
            Kind::Address => Self::Address(0, everywhere),
            Kind::ForwardingEntry => Self::ForwardingEntry(0, MacAddress::new([0; 6])),
            Kind::Neighbour => Self::Neighbour(0, IpAddr::V4(NOWHERE)),
            Kind::Nexthop => Self::Nexthop(0),
            Kind::Route => Self::Route(everywhere, 0, 0),
        }
    }

    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::Address(..) => Kind::Address,
            Self::ForwardingEntry(..) => Kind::ForwardingEntry,
            Self::Neighbour(..) => Kind::Neighbour,
            Self::Nexthop(_) => Kind::Nexthop,
            Self::Route(..) => Kind::Route,
        }
    }
}

impl Object {
    /// Reads a message about any of the kinds; `None` for everything else.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        Address::parse(message)
            .map(Self::Address)
            .or_else(|| Route::parse(message).map(Self::Route))
            .or_else(|| Neighbour::parse(message).map(Self::Neighbour))
            .or_else(|| ForwardingEntry::parse(message).map(Self::ForwardingEntry))
            .or_else(|| Nexthop::parse(message).map(Self::Nexthop))
    }

    /// What makes it exclude others.
    pub const fn key(&self) -> Key {
        match self {
            Self::Address(it) => Key::Address(it.link, it.address),
            Self::ForwardingEntry(it) => Key::ForwardingEntry(it.link, it.mac),
            Self::Neighbour(it) => Key::Neighbour(it.link, it.address),
            Self::Nexthop(it) => Key::Nexthop(it.id),
            Self::Route(it) => Key::Route(it.destination, it.table, it.metric),
        }
    }

    /// The request that creates it or puts it in the place of the one with the same key.
    pub fn replace(&self) -> Request {
        match self {
            Self::Address(it) => it.replace(),
            Self::ForwardingEntry(it) => it.replace(),
            Self::Neighbour(it) => it.replace(),
            Self::Nexthop(it) => it.replace(),
            Self::Route(it) => it.replace(),
        }
    }

    /// The request that deletes it.
    pub fn delete(&self) -> Request {
        match self {
            Self::Address(it) => it.delete(),
            Self::ForwardingEntry(it) => it.delete(),
            Self::Neighbour(it) => it.delete(),
            Self::Nexthop(it) => it.delete(),
            Self::Route(it) => it.delete(),
        }
    }

    /// Whether `actual`, as read from the kernel, is what this one asks for. Flags that only the
    /// kernel sets do not count.
    pub fn fits(&self, actual: &Self) -> bool {
        match (self, actual) {
            (Self::Address(wanted), Self::Address(actual)) => wanted.fits(actual),
            (wanted, actual) => wanted == actual,
        }
    }

    /// The index of the device it belongs to, if it names one.
    pub const fn link(&self) -> Option<u32> {
        match self {
            Self::Address(it) => Some(it.link),
            Self::ForwardingEntry(it) => Some(it.link),
            Self::Neighbour(it) => Some(it.link),
            Self::Nexthop(it) => Some(it.link),
            Self::Route(it) => it.link,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(it) => it.fmt(f),
            Self::ForwardingEntry(it) => it.fmt(f),
            Self::Neighbour(it) => it.fmt(f),
            Self::Nexthop(it) => it.fmt(f),
            Self::Route(it) => it.fmt(f),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(link, address) => write!(f, "address {address} on device {link}"),
            Self::ForwardingEntry(link, mac) => {
                write!(f, "forwarding entry {mac} on device {link}")
            }
            Self::Neighbour(link, address) => write!(f, "neighbour {address} on device {link}"),
            Self::Nexthop(id) => write!(f, "nexthop {id}"),
            Self::Route(destination, table, _) if *table == Route::MAIN => {
                write!(f, "route {destination}")
            }
            Self::Route(destination, table, _) => write!(f, "route {destination} in table {table}"),
        }
    }
}

macro_rules! into_object {
    ($($kind:ident)*) => {$(
        impl From<$kind> for Object {
            fn from(it: $kind) -> Self {
                Self::$kind(it)
            }
        }
    )*};
}

into_object! { Address ForwardingEntry Neighbour Nexthop Route }

#[cfg(test)]
mod object_tests;
