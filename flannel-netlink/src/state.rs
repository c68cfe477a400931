//! Objects of the kernel as plain values: parse from the kernel's messages, build requests for it.

mod address;
mod forwarding;
mod ip_family;
mod link;
mod mac;
mod neighbour;
mod nexthop;
mod object;
mod route;
#[cfg(test)]
pub(crate) mod testing;

pub use address::{Address, AddressFilter};
pub use forwarding::ForwardingEntry;
pub use ip_family::IpFamily;
pub use link::{Link, LinkKind, Vxlan};
pub use mac::{MacAddress, ParseMacError};
pub use neighbour::Neighbour;
pub(crate) use neighbour::{RTM_DELNEIGH, RTM_NEWNEIGH};
pub use nexthop::Nexthop;
pub(crate) use nexthop::{RTM_DELNEXTHOP, RTM_NEWNEXTHOP};
pub(crate) use object::Kind;
pub use object::{Key, Object};
pub(crate) use route::{RTM_DELROUTE, RTM_NEWROUTE};
pub use route::{Route, RouteKind, Via};

/// `AF_INET`, `AF_INET6`: the family byte of an address or network.
pub(crate) const fn family_of(address: &std::net::IpAddr) -> u8 {
    match address {
        std::net::IpAddr::V4(_) => AF_INET,
        std::net::IpAddr::V6(_) => AF_INET6,
    }
}

pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;
pub(crate) const AF_BRIDGE: u8 = 7;

/// Create it, or put it in the place of the one with the same key.
pub(crate) const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;
