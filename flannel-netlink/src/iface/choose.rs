mod usable;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use self::usable::{Wanted, is_ipv6_link_local};
use super::{Families, Interface, InterfaceFault, NotTaken, Reach, Refusal, Search, Selector};
use crate::{
    KernelError,
    state::{Address, IpFamily, Link, Nexthop, Route, RouteKind, Via},
};

/// What there is to choose from, in the kernel's order.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// The devices.
    pub links: Vec<Link>,
    /// The addresses of all devices.
    pub addresses: Vec<Address>,
    /// The default routes of the main table.
    pub default_routes: Vec<Route>,
    /// The nexthop objects that default routes may refer to.
    pub nexthops: Vec<Nexthop>,
    /// What the kernel said about addresses that are to be reached.
    pub reach: Vec<(IpAddr, Result<Reach, KernelError>)>,
}

/// Chooses an interface and its addresses.
///
/// * An address in use stays while it is usable, whatever comes beside it, and its interface stays with it: while it is on a device
///   that is up and no other machine has it. A deprecated one is usable, and so is one that the kernel is examining once more.
/// * Otherwise the selectors decide, in their order; an interface with addresses of all families goes before one that lacks a
///   family. By default route and by pattern, one with an address of pods is taken only if there is no other and never was. An
///   interface with MTU 0 is not taken.
/// * Of an interface's usable addresses a preferred one is taken before all others, then one in use, then the one that the kernel
///   would send from, not deprecated before deprecated, permanent before leased, lasting before temporary, else in the kernel's
///   order. A permanent address without a network of its own goes behind one that has one and is likely to be the machine's: it
///   moves from machine to machine. Never taken are link-local IPv6 addresses and those that the kernel is still examining; and
///   link-local IPv4 addresses only if they are asked for.
/// * Where nothing is usable, what was chosen last stays, with the reason in [`faults`](Interface::faults).
///
/// # Errors
///
/// Per selector, every interface and why it was not taken; if nothing was chosen before.
pub fn choose(candidates: &Candidates, search: &Search) -> Result<Interface, Vec<Refusal>> {
    Choice { candidates, search }.choose()
}

struct Choice<'a> {
    candidates: &'a Candidates,
    search: &'a Search,
}

/// How much of what is asked for an interface must have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Need {
    AllFamilies,
    OneFamily,
}

impl<'a> Choice<'a> {
    fn choose(&self) -> Result<Interface, Vec<Refusal>> {
        let current = self.search.current.as_ref();
        let sure = current.filter(|it| !it.is_doubtful);
        if let Some(stays) = sure.and_then(|current| self.stay(current)) {
            return Ok(stays);
        }
        let every = self.links();
        let of_machines: Vec<_> =
            every.iter().copied().filter(|link| !self.leads_to_pods(link)).collect();
        let refusals = match self.choose_among(&of_machines, &every) {
            Ok(chosen) => return Ok(chosen),
            Err(refusals) => refusals,
        };
        let Some(current) = current else {
            let doubtful = self.choose_among(&every, &every).map_err(|_| refusals)?;
            return Ok(Interface { is_doubtful: true, ..doubtful });
        };
        if let Some(doubtful) = self.stay(current) {
            return Ok(Interface { is_doubtful: current.is_doubtful, ..doubtful });
        }
        Ok(self.renumbered(current).unwrap_or_else(|| self.last(current)))
    }

    /// The interface that has an address in use.
    fn stay(&self, current: &Interface) -> Option<Interface> {
        let holds = |link: &&Link| {
            let mut addresses = self.candidates.of(link.index);
            link.up && addresses.any(|it| self.search.is_current(it.address.ip()) && self.stays(it))
        };
        let links = self.links();
        let mut holders = links.iter().copied().filter(holds);
        let same = holders.clone().find(|link| link.name == current.name);
        // It may have moved, as when a bridge takes over a network card.
        let moved = || holders.find(|link| self.is_by_route() && !self.leads_to_pods(link));
        let link = same.or_else(moved)?;
        self.interface(link, Need::OneFamily, &Wanted::Any).ok()
    }

    /// The interface with other addresses, if it was its routes that it was chosen for: they may be on their way.
    fn renumbered(&self, current: &Interface) -> Option<Interface> {
        let mut links = self.candidates.links.iter();
        let link = links.find(|link| self.is_by_route() && link.name == current.name)?;
        self.interface(link, Need::OneFamily, &Wanted::Any).ok()
    }

    /// Whether routes say which interface is meant.
    fn is_by_route(&self) -> bool {
        let by_route = |it: &Selector| matches!(it, Selector::CanReach(_) | Selector::DefaultRoute);
        self.search.selectors.iter().any(by_route)
    }

    /// What was chosen last, with what is wrong with it.
    fn last(&self, current: &Interface) -> Interface {
        let Some(link) = self.candidates.links.iter().find(|link| link.name == current.name) else {
            return Interface { faults: vec![InterfaceFault::Missing], ..current.clone() };
        };
        let has = |family| {
            let mut addresses = self.candidates.of(link.index).filter(|it| self.stays(it));
            addresses.any(|it| current.address(family) == Some(it.address.ip()))
        };
        let mut missing = self.search.families.list();
        missing.retain(|family| !has(*family));
        let mtu = if link.mtu == 0 { current.mtu } else { link.mtu };
        let faults = faults(link, &missing);
        Interface { index: link.index, mtu, faults, ..current.clone() }
    }

    /// By selectors; those that may be mistaken look among `likely` only.
    fn choose_among(
        &self,
        likely: &[&'a Link],
        every: &[&'a Link],
    ) -> Result<Interface, Vec<Refusal>> {
        let needs = match self.search.families {
            Families::Dual => &[Need::AllFamilies, Need::OneFamily][..],
            Families::V4 | Families::V6 => &[Need::AllFamilies],
        };
        let mut refusals = Vec::new();
        for need in needs {
            refusals.clear();
            for selector in &self.search.selectors {
                let may_be_mistaken =
                    matches!(selector, Selector::DefaultRoute | Selector::Pattern(_));
                let links = if may_be_mistaken { likely } else { every };
                match self.choose_by(selector, links, *need) {
                    Ok(interface) => return Ok(interface),
                    Err(refusal) => refusals.push(refusal),
                }
            }
        }
        Err(refusals)
    }

    fn choose_by(
        &self,
        selector: &Selector,
        links: &[&Link],
        need: Need,
    ) -> Result<Interface, Refusal> {
        let refuse = |reason: Option<String>, interfaces| {
            Err(Refusal { selector: selector.to_string(), reason, interfaces })
        };
        let chosen = match selector {
            Selector::Address { v4: None, v6: None } => {
                return refuse(Some("none is given".to_owned()), Vec::new());
            }
            Selector::Address { v4, v6 } => {
                let (v4, v6) = (v4.map(IpAddr::V4), v6.map(IpAddr::V6));
                let named = v6.filter(|v6| !is_ipv6_link_local(v6));
                self.first(links, |link| {
                    let has = |ip: &&IpAddr| {
                        self.candidates.of(link.index).any(|it| it.address.ip() == **ip)
                    };
                    if let Some(missing) = v4.iter().chain(&v6).find(|ip| !has(ip)) {
                        return Err(format!("does not have {missing}"));
                    }
                    self.interface(link, need, &Wanted::Addresses { v4, v6: named })
                })
            }
            Selector::CanReach(target) => {
                let asked = self.candidates.reach.iter().find(|(address, _)| address == target);
                let reach = match asked {
                    Some((_, Ok(reach))) => reach,
                    Some((_, Err(error))) => return refuse(Some(error.to_string()), Vec::new()),
                    None => return refuse(Some("the kernel was not asked".to_owned()), Vec::new()),
                };
                let wanted = Wanted::source(reach.source, *target);
                self.first(links, |link| match link.index == reach.link {
                    true => self.interface(link, need, &wanted),
                    false => Err("is not on the way".to_owned()),
                })
            }
            Selector::DefaultRoute => self.first_with_default_route(links, need),
            Selector::Name(name) => self.first(links, |link| match link.name == *name {
                true => self.interface(link, need, &Wanted::Any),
                false => Err("has another name".to_owned()),
            }),
            Selector::Pattern(pattern) => self
                .first(links, |link| self.interface(link, need, &Wanted::Pattern(pattern)))
                .or_else(|_| {
                    self.first(links, |link| match pattern.is_match(&link.name) {
                        true => self.interface(link, need, &Wanted::Any),
                        false => Err("matches neither by a usable address nor by name".to_owned()),
                    })
                }),
        };
        chosen.or_else(|interfaces| refuse(None, interfaces))
    }

    /// The first route of the first asked family decides; for both families a device of both.
    fn first_with_default_route(
        &self,
        links: &[&Link],
        need: Need,
    ) -> Result<Interface, Vec<NotTaken>> {
        let v4 = self.candidates.default_links(IpFamily::V4);
        let v6 = self.candidates.default_links(IpFamily::V6);
        let both = v4.iter().copied().filter(|index| v6.contains(index));
        let (mut wanted, reason) = match (self.search.families, need) {
            (Families::V4, _) => (v4, "has no IPv4 default route"),
            (Families::V6, _) => (v6, "has no IPv6 default route"),
            (Families::Dual, Need::AllFamilies) => {
                (both.collect(), "has not both an IPv4 and an IPv6 default route")
            }
            (Families::Dual, Need::OneFamily) => (
                both.chain(v4.iter().copied()).chain(v6.iter().copied()).collect(),
                "has no default route",
            ),
        };
        wanted.sort_by_key(|index| !self.is_published_on(*index));
        let mut refused = self.first(links, |_| Err(reason.to_owned())).err().unwrap_or_default();
        for index in &wanted {
            match self.first(links, |link| match link.index == *index {
                true => self.interface(link, need, &Wanted::Any),
                false => Err("has no default route".to_owned()),
            }) {
                Ok(interface) => return Ok(interface),
                Err(interfaces) => refused = interfaces,
            }
        }
        Err(refused)
    }

    /// The first device that `take` takes, or why each was not taken.
    fn first(
        &self,
        links: &[&Link],
        take: impl Fn(&Link) -> Result<Interface, String>,
    ) -> Result<Interface, Vec<NotTaken>> {
        let mut not_taken = Vec::new();
        for link in links {
            match take(link) {
                Ok(interface) => return Ok(interface),
                Err(reason) => not_taken.push(NotTaken {
                    name: link.name.clone(),
                    addresses: self.candidates.of(link.index).map(|it| it.address).collect(),
                    reason,
                }),
            }
        }
        Err(not_taken)
    }

    fn interface(&self, link: &Link, need: Need, wanted: &Wanted<'_>) -> Result<Interface, String> {
        if link.mtu == 0 {
            return Err("has MTU 0".to_owned());
        }
        let families = self.search.families.list();
        let found = |family| self.usable(link, family, wanted).first().copied();
        let missing: Vec<_> = families.iter().copied().filter(|it| found(*it).is_none()).collect();
        match missing.first() {
            Some(family) if need == Need::AllFamilies => {
                return Err(InterfaceFault::NoAddress(*family).to_string());
            }
            Some(_) if missing.len() == families.len() => {
                return Err("has no usable address".to_owned());
            }
            _ => {}
        }
        // While a family has no other address, the last one stays.
        let last = |family| self.search.current.as_ref()?.address(family);
        let chosen = |family| {
            families.contains(&family).then(|| found(family).or_else(|| last(family))).flatten()
        };
        Ok(Interface {
            name: link.name.clone(),
            index: link.index,
            mtu: link.mtu,
            v4: chosen(IpFamily::V4).and_then(only_v4),
            v6: chosen(IpFamily::V6).and_then(only_v6),
            is_doubtful: false,
            faults: faults(link, &missing),
        })
    }

    /// The devices: those with a published address first, else in the kernel's order.
    fn links(&self) -> Vec<&'a Link> {
        let mut links: Vec<_> = self.candidates.links.iter().collect();
        links.sort_by_key(|link| (!self.is_published_on(link.index), link.index));
        links
    }

    fn leads_to_pods(&self, link: &Link) -> bool {
        self.candidates.of(link.index).any(|it| self.search.is_of_pods(it.address.ip()))
    }

    fn is_published_on(&self, link: u32) -> bool {
        let mut addresses = self.candidates.of(link);
        addresses.any(|it| self.search.published.contains(&it.address.ip()) && self.stays(it))
    }
}

impl Candidates {
    fn of(&self, link: u32) -> impl Iterator<Item = &Address> + Clone {
        self.addresses.iter().filter(move |address| address.link == link)
    }

    /// The devices that default routes of a family lead to, in the routes' order.
    fn default_links(&self, family: IpFamily) -> Vec<u32> {
        self.default_routes
            .iter()
            .filter(|route| {
                IpFamily::of(&route.destination.ip()) == family
                    && route.destination.prefix() == 0
                    && route.kind == RouteKind::Unicast
            })
            .filter_map(|route| match route.via {
                Via::Nexthop(id) => self.nexthops.iter().find(|it| it.id == id).map(|it| it.link),
                Via::Direct | Via::Gateway(_) | Via::Other => route.link,
            })
            .collect()
    }
}

/// What is wrong with a device that lacks addresses of these families.
fn faults(link: &Link, missing: &[IpFamily]) -> Vec<InterfaceFault> {
    let state = match (link.up, link.running) {
        (false, _) => Some(InterfaceFault::Down),
        (true, false) => Some(InterfaceFault::NoCarrier),
        (true, true) => None,
    };
    state.into_iter().chain(missing.iter().copied().map(InterfaceFault::NoAddress)).collect()
}

fn only_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

fn only_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(v6),
    }
}

#[cfg(test)]
mod choose_tests;
#[cfg(test)]
mod histories;
