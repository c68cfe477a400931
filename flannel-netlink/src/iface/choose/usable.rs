//! Which addresses of a device can be used between machines, best first.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Choice;
use crate::state::{Address, IpFamily, Link};

/// Which addresses a selector asks for.
pub(super) enum Wanted<'a> {
    /// None in particular.
    Any,
    /// These, of the families that are given.
    Addresses { v4: Option<IpAddr>, v6: Option<IpAddr> },
    /// Those that an expression finds a match in.
    Pattern(&'a regex_lite::Regex),
    /// The one that the kernel sends from, if there is a choice.
    Source(IpAddr),
}

impl Wanted<'_> {
    /// What the kernel sends from to `target`.
    pub(super) fn source(source: Option<IpAddr>, target: IpAddr) -> Self {
        // A link-local one is asked for only by who asks for a neighbour that has such an address itself.
        let source = source.filter(|it| !is_link_local(it) || is_link_local(&target));
        source.map_or(Self::Any, Self::Source)
    }

    fn allows(&self, address: &IpAddr) -> bool {
        match self {
            Self::Any | Self::Source(_) => true,
            Self::Addresses { v4, v6 } => {
                let given = if address.is_ipv4() { v4 } else { v6 };
                given.is_none_or(|given| given == *address)
            }
            Self::Pattern(pattern) => pattern.is_match(&address.to_string()),
        }
    }

    /// Whether it asks for this very address.
    fn names(&self, address: &IpAddr) -> bool {
        match self {
            Self::Any => false,
            Self::Addresses { v4, v6 } => [*v4, *v6].contains(&Some(*address)),
            Self::Pattern(pattern) => pattern.is_match(&address.to_string()),
            Self::Source(source) => source == address,
        }
    }
}

impl Choice<'_> {
    /// Whether an address in use may stay so: what the kernel says of it is no reason to give it up.
    pub(super) fn stays(&self, address: &Address) -> bool {
        !address.duplicate && is_between_machines(&address.address.ip())
    }

    /// The usable addresses of a device, best first.
    pub(super) fn usable(&self, link: &Link, family: IpFamily, wanted: &Wanted<'_>) -> Vec<IpAddr> {
        let search = self.search;
        let is_usable = |it: &&Address| {
            let ip = it.address.ip();
            let known = search.is_in_use(ip);
            let asked_for = search.preferred.contains(&ip) || search.is_current(ip);
            IpFamily::of(&ip) == family
                && self.stays(it)
                && (known || !it.tentative)
                && wanted.allows(&ip)
                && (!is_link_local(&ip) || asked_for || wanted.names(&ip))
        };
        let mut usable: Vec<_> = self.candidates.of(link.index).filter(is_usable).collect();
        let moves: Vec<_> = usable.iter().map(|it| moves(it, &usable)).collect();
        let mut order: Vec<_> = usable.drain(..).zip(moves).collect();
        // Stable, so that the kernel's order decides between equals.
        order.sort_by_key(|(it, moves)| {
            let ip = it.address.ip();
            let known = (
                !search.preferred.contains(&ip),
                !search.published.contains(&ip),
                !search.is_current(ip),
                !matches!(wanted, Wanted::Source(source) if *source == ip),
            );
            (known, is_link_local(&ip), it.deprecated, *moves, !it.permanent, it.temporary)
        });
        order.into_iter().map(|(it, _)| it.address.ip()).collect()
    }
}

/// Whether an address is likely to move from machine to machine, as those of keepalived do: a permanent one without a network of its
/// own beside one that has a network and is the machine's. For IPv4 that is a leased one, as some clouds give nothing but single
/// addresses beside a private network; for IPv6 any of the same kind, as what DHCP gives is single and not permanent.
fn moves(address: &Address, others: &[&Address]) -> bool {
    let is_single = |it: &Address| match it.address {
        IpNetwork::V4(v4) => v4.prefix() == 32,
        IpNetwork::V6(v6) => v6.prefix() == 128,
    };
    let is_private = |it: &Address| match it.address.ip() {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    let is_the_machines = |it: &&Address| {
        let leased = it.address.is_ipv6() || !it.permanent;
        leased && !is_single(it) && is_private(it) == is_private(address)
    };
    address.permanent && is_single(address) && others.iter().copied().any(|it| is_the_machines(&it))
}

/// Whether packets between machines can have this address.
fn is_between_machines(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let unusable = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !unusable && !broadcast && !is_ipv6_link_local(address)
}

pub(super) fn is_ipv6_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
