//! Which interface of a machine to use for traffic between machines.

mod choose;
mod watch;

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnetwork::IpNetwork;

pub use self::{
    choose::{Candidates, choose},
    watch::{InterfaceNews, InterfaceWatch},
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
    /// Its IPv4 address, if IPv4 was asked for.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address, if IPv6 was asked for.
    pub v6: Option<Ipv6Addr>,
    /// It has an address of pods, and was taken because there was no other. Where there was another before, this one is a mistake.
    pub is_doubtful: bool,
}

/// Which address families an interface must serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Families {
    /// IPv4 and IPv6, on one interface.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Families {
    /// Whether IPv4 is asked for.
    pub const fn v4(self) -> bool {
        matches!(self, Self::Dual | Self::V4)
    }

    /// Whether IPv6 is asked for.
    pub const fn v6(self) -> bool {
        matches!(self, Self::Dual | Self::V6)
    }
}

/// One way to say which interface is meant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Selector {
    /// The one that has these addresses; with both, it must have both.
    Address {
        /// The IPv4 address.
        v4: Option<Ipv4Addr>,
        /// The IPv6 address.
        v6: Option<Ipv6Addr>,
    },
    /// The one through which this address is reached. Its address there is the one that the kernel
    /// would send from.
    CanReach(IpAddr),
    /// The one that the default route leads to; for both families, one that both default routes
    /// lead to.
    DefaultRoute,
    /// The one of this name.
    Name(String),
    /// The first one, in the kernel's order, with a usable address that the expression finds a
    /// match in; if there is none, the first whose name it finds a match in. For both families one
    /// address of each must match.
    Pattern(regex_lite::Regex),
}

impl Selector {
    /// A [`Pattern`](Self::Pattern).
    ///
    /// # Errors
    ///
    /// [`PatternError`] when `expression` is not a regular expression.
    pub fn pattern(expression: &str) -> Result<Self, PatternError> {
        regex_lite::Regex::new(expression).map(Self::Pattern).map_err(|source| PatternError {
            expression: expression.to_owned(),
            source: source.into(),
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { v4: Some(v4), v6: Some(v6) } => write!(f, "addresses {v4} and {v6}"),
            Self::Address { v4: Some(v4), v6: None } => write!(f, "address {v4}"),
            Self::Address { v4: None, v6: Some(v6) } => write!(f, "address {v6}"),
            Self::Address { v4: None, v6: None } => write!(f, "no address"),
            Self::CanReach(address) => write!(f, "way to {address}"),
            Self::DefaultRoute => write!(f, "default route"),
            Self::Name(name) => write!(f, "name {name:?}"),
            Self::Pattern(pattern) => write!(f, "expression {:?}", pattern.as_str()),
        }
    }
}

/// What kind of interface is looked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// Which address families it must serve.
    pub families: Families,
    /// Ways to say which one is meant, in the order in which they are tried.
    pub selectors: Vec<Selector>,
    /// Addresses to take where the selector leaves a choice among those of an interface.
    pub preferred: Vec<IpAddr>,
    /// Where pods have their addresses. A device with an address there, such as a tunnel or the
    /// bridge of the pods, leads to pods and not to machines: a default route through it or a
    /// pattern that fits it counts only if there is no other. Where it is meant by name, by address
    /// or by what it can reach, it is taken.
    pub pods: Vec<RangeInclusive<IpAddr>>,
}

/// The text is not a regular expression.
#[derive(Debug, thiserror::Error)]
#[error("{expression:?} is not a regular expression")]
pub struct PatternError {
    expression: String,
    source: Box<dyn Error + Send + Sync>,
}

/// Chooses an interface: the first that any of the selectors, in their order, finds. See [`choose()`]
/// for the rules.
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
    let candidates = read_candidates(connection, search).await?;
    let mut refusals = Vec::new();
    for selector in &search.selectors {
        match choose(&candidates, search.families, selector) {
            Ok(interface) => return Ok(interface),
            Err(refusal) => refusals.push(refusal),
        }
    }
    Err(SelectError::NoneFits { refusals })
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

/// Why no interface was chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// The kernel could not be listed.
    #[error("cannot list {what} to choose an interface")]
    List {
        /// Which objects.
        what: &'static str,
        /// The kernel's reason.
        source: KernelError,
    },
    /// Nothing fits.
    #[error("no interface fits: {}", display_all(refusals))]
    NoneFits {
        /// Per selector, why not.
        refusals: Vec<Refusal>,
    },
}

/// Why one selector found no interface.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Refusal {
    /// The selector, for people.
    pub selector: String,
    /// What was wrong, if it was not an interface's fault.
    pub reason: Option<String>,
    /// Every interface and why it was not taken.
    pub interfaces: Vec<NotTaken>,
}

/// One interface that was not taken.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct NotTaken {
    /// Its name.
    pub name: String,
    /// Its addresses, usable or not.
    pub addresses: Vec<IpNetwork>,
    /// Why not, in words.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.selector)?;
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        for (index, it) in self.interfaces.iter().enumerate() {
            let addresses: Vec<_> = it.addresses.iter().map(ToString::to_string).collect();
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{} [{}] {}", it.name, addresses.join(" "), it.reason)?;
        }
        Ok(())
    }
}

fn display_all(refusals: &[Refusal]) -> String {
    let all: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    all.join("; ")
}

/// Reads what [`choose()`] needs for this search.
async fn read_candidates(
    connection: &mut Connection,
    search: &Search,
) -> Result<Candidates, SelectError> {
    let Search { selectors, .. } = search;
    let failed = |what| move |source| SelectError::List { what, source };
    let links = list_links(connection).await.map_err(failed("links"))?;
    let addresses =
        list_addresses(connection, AddressFilter::default()).await.map_err(failed("addresses"))?;
    let (preferred, pods) = (search.preferred.clone(), search.pods.clone());
    let mut candidates = Candidates { links, addresses, preferred, pods, ..Candidates::default() };
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
