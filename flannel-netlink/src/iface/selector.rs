//! Which interface is asked for.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::Interface;
use crate::state::IpFamily;

/// Which address families an interface should serve.
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

    /// Those that are asked for, IPv4 first.
    pub(super) fn list(self) -> Vec<IpFamily> {
        match self {
            Self::Dual => IpFamily::ALL.to_vec(),
            Self::V4 => vec![IpFamily::V4],
            Self::V6 => vec![IpFamily::V6],
        }
    }
}

/// One way to say which interface is meant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Selector {
    /// The one that has these addresses; with both, it must have both. A link-local IPv6 address only says which interface is
    /// meant.
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
    /// lead to if there is one.
    DefaultRoute,
    /// The one of this name.
    Name(String),
    /// The first one, in the kernel's order, with a usable address that the expression finds a
    /// match in; if there is none, the first whose name it finds a match in.
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
    /// Which address families it should serve.
    pub families: Families,
    /// Ways to say which one is meant, in the order in which they are tried.
    pub selectors: Vec<Selector>,
    /// Addresses to take before all others of an interface, such as a public address that the operator has given.
    pub preferred: Vec<IpAddr>,
    /// Addresses under which peers know this host. They stay while they are usable.
    pub published: Vec<IpAddr>,
    /// What was chosen last, if anything was. It stays while one of its addresses is usable.
    pub current: Option<Interface>,
    /// Where pods have their addresses. A device with an address there, such as a tunnel or the
    /// bridge of the pods, leads to pods and not to machines: a default route through it or a
    /// pattern that fits it counts only if there is no other. Where it is meant by name, by address
    /// or by what it can reach, it is taken.
    pub pods: Vec<RangeInclusive<IpAddr>>,
}

impl Search {
    /// A search by these selectors that has chosen nothing yet.
    pub fn new(families: Families, selectors: Vec<Selector>) -> Self {
        let (preferred, published, pods) = (Vec::new(), Vec::new(), Vec::new());
        Self { families, selectors, preferred, published, current: None, pods }
    }

    /// Whether `address` is in use: known to peers, or chosen last.
    pub(super) fn is_in_use(&self, address: IpAddr) -> bool {
        self.published.contains(&address) || self.is_current(address)
    }

    pub(super) fn is_current(&self, address: IpAddr) -> bool {
        self.current.as_ref().is_some_and(|it| it.address(IpFamily::of(&address)) == Some(address))
    }

    pub(super) fn is_of_pods(&self, address: IpAddr) -> bool {
        self.pods.iter().any(|range| range.contains(&address))
    }
}

/// The text is not a regular expression.
#[derive(Debug, thiserror::Error)]
#[error("{expression:?} is not a regular expression")]
pub struct PatternError {
    expression: String,
    source: Box<dyn Error + Send + Sync>,
}
