//! Which interface of a machine to use for traffic between machines, and which of its addresses.

mod choose;
mod interface_changes;
mod refusal;
mod selector;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub use self::{
    choose::{Candidates, choose},
    interface_changes::InterfaceChanges,
    refusal::{NotTaken, Refusal, SelectError},
    selector::{Families, PatternError, Search, Selector},
};
use crate::{
    Connection, KernelError, Message, list_addresses, list_links, list_nexthops, list_routes,
    state::{AddressFilter, IpFamily, Route},
};

/// An interface that was chosen, with the addresses to use on it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
    /// The largest packet it takes, bytes.
    pub mtu: u32,
    /// Its IPv4 address, if IPv4 was asked for and there is or was a usable one.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address, if IPv6 was asked for and there is or was a usable one.
    pub v6: Option<Ipv6Addr>,
    /// It has an address of pods, and was taken because there was no other. Where there was another before, this one is a mistake.
    pub is_doubtful: bool,
    /// What keeps it from carrying packets. The addresses are those from before then.
    pub faults: Vec<InterfaceFault>,
}

impl Interface {
    /// Its address of a family.
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.v4.map(IpAddr::V4),
            IpFamily::V6 => self.v6.map(IpAddr::V6),
        }
    }
}

/// What keeps an interface from carrying packets between machines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum InterfaceFault {
    /// It is set down.
    Down,
    /// There is no device of its name.
    Missing,
    /// It has no usable address of this family.
    NoAddress(IpFamily),
    /// Its cable is out, or the device at the other end is down.
    NoCarrier,
}

impl fmt::Display for InterfaceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "is down",
            Self::Missing => "does not exist",
            Self::NoAddress(IpFamily::V4) => "has no usable IPv4 address",
            Self::NoAddress(IpFamily::V6) => "has no usable IPv6 address",
            Self::NoCarrier => "has no carrier",
        })
    }
}

/// Chooses an interface by what the kernel says now. See [`choose()`] for the rules.
///
/// # Errors
///
/// [`SelectError::NoneFits`] lists every interface and why it was not taken; [`SelectError::List`]
/// when the kernel cannot be read.
///
/// # Cancel safety
///
/// Reads only.
pub async fn select_interface(
    connection: &mut Connection,
    search: &Search,
) -> Result<Interface, SelectError> {
    let candidates = read_candidates(connection, &search.selectors).await?;
    choose(&candidates, search).map_err(|refusals| SelectError::NoneFits { refusals })
}

/// How the kernel reaches `destination` now.
///
/// # Errors
///
/// What the kernel said; [`KernelError::unreachable`] when there is no way.
///
/// # Cancel safety
///
/// Reads only.
pub async fn lookup_route(
    connection: &mut Connection,
    destination: IpAddr,
) -> Result<Reach, KernelError> {
    connection.get(&Route::lookup(destination), Reach::parse).await
}

/// How the kernel reaches an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Reach {
    /// Through the device with this index.
    pub link: u32,
    /// Through this gateway; `None` when it is on the link.
    pub gateway: Option<IpAddr>,
    /// From this address.
    pub source: Option<IpAddr>,
}

impl Reach {
    fn parse(message: &Message<'_>) -> Option<Self> {
        let (_, attributes) = message.split(ROUTE_HEADER)?;
        let (mut link, mut gateway, mut source) = (None, None, None);
        for attribute in attributes {
            match attribute.kind {
                RTA_OIF => link = attribute.u32(),
                RTA_GATEWAY => gateway = attribute.ip(),
                RTA_PREFSRC => source = attribute.ip(),
                _ => {}
            }
        }
        Some(Self { link: link?, gateway, source })
    }
}

/// Reads what [`choose()`] needs for these selectors.
async fn read_candidates(
    connection: &mut Connection,
    selectors: &[Selector],
) -> Result<Candidates, SelectError> {
    let failed = |what| move |source| SelectError::List { what, source };
    let links = list_links(connection).await.map_err(failed("links"))?;
    let addresses =
        list_addresses(connection, AddressFilter::default()).await.map_err(failed("addresses"))?;
    let mut candidates = Candidates { links, addresses, ..Candidates::default() };
    if selectors.iter().any(|selector| matches!(selector, Selector::DefaultRoute)) {
        for family in IpFamily::ALL {
            let routes =
                list_routes(connection, Route::MAIN, family).await.map_err(failed("routes"))?;
            candidates
                .default_routes
                .extend(routes.into_iter().filter(|it| it.destination.prefix() == 0));
        }
        candidates.nexthops = list_nexthops(connection).await.map_err(failed("nexthop objects"))?;
    }
    for selector in selectors {
        if let Selector::CanReach(address) = selector {
            let reach = lookup_route(connection, *address).await;
            candidates.reach.push((*address, reach));
        }
    }
    Ok(candidates)
}

/// The size of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
// linux/rtnetlink.h
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
