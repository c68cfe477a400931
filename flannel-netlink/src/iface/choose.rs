use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnetwork::IpNetwork;

use super::{Families, Interface, NotTaken, Reach, Refusal, Selector};
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
    /// Addresses to take where the selector leaves a choice among those of an interface.
    pub preferred: Vec<IpAddr>,
    /// Where pods have their addresses.
    pub pods: Vec<RangeInclusive<IpAddr>>,
}

/// Chooses an interface.
///
/// Where the selector does not name an address, the interface's first usable one is taken: global
/// or link-local and not deprecated; a preferred one before all others, global before link-local,
/// proven to be nobody else's before not, permanent before leased, lasting before temporary, else
/// in the kernel's order. A permanent IPv4 address without a network of its own goes behind a
/// leased one that has one: it moves from machine to machine. An interface without a usable address of an asked family, or with MTU 0, is
/// not taken. By default route and by pattern, one with an address of pods is taken only if there
/// is no other.
///
/// # Errors
///
/// [`Refusal`] with every interface and why it was not taken.
pub fn choose(
    candidates: &Candidates,
    families: Families,
    selector: &Selector,
) -> Result<Interface, Refusal> {
    let may_be_mistaken = matches!(selector, Selector::DefaultRoute | Selector::Pattern(_));
    if may_be_mistaken && let Cow::Owned(fewer) = candidates.without_those_of_pods() {
        let chosen = choose_among(&fewer, families, selector);
        return chosen.or_else(|_| {
            let taken = choose_among(candidates, families, selector)?;
            Ok(Interface { is_doubtful: true, ..taken })
        });
    }
    choose_among(candidates, families, selector)
}

fn choose_among(
    candidates: &Candidates,
    families: Families,
    selector: &Selector,
) -> Result<Interface, Refusal> {
    let refuse = |reason: Option<String>, interfaces| {
        Err(Refusal { selector: selector.to_string(), reason, interfaces })
    };
    match selector {
        Selector::Address { v4: None, v6: None } => {
            refuse(Some("none is given".to_owned()), Vec::new())
        }
        Selector::Address { v4, v6 } => {
            let given = Given { v4: v4.map(Into::into), v6: v6.map(Into::into) };
            first(candidates, |link| {
                if let Some(missing) = given.missing_on(candidates, link) {
                    return Err(format!("does not have {missing}"));
                }
                candidates.interface(link, families, given)
            })
            .or_else(|interfaces| refuse(None, interfaces))
        }
        Selector::CanReach(address) => {
            match candidates.reach.iter().find(|(it, _)| it == address) {
                Some((_, Ok(reach))) => {
                    let source = reach.source.filter(|source| {
                        candidates.of(reach.link).any(|it| it.address.ip() == *source)
                    });
                    let given = match IpFamily::of(address) {
                        IpFamily::V4 => Given { v4: source, v6: None },
                        IpFamily::V6 => Given { v4: None, v6: source },
                    };
                    first(candidates, |link| {
                        if link.index != reach.link {
                            return Err("is not on the way".to_owned());
                        }
                        candidates.interface(link, families, given)
                    })
                    .or_else(|interfaces| refuse(None, interfaces))
                }
                Some((_, Err(error))) => refuse(Some(error.to_string()), Vec::new()),
                None => refuse(Some("the kernel was not asked".to_owned()), Vec::new()),
            }
        }
        Selector::DefaultRoute => {
            // The first route of the first asked family decides; for both families a device of
            // both.
            let v4 = candidates.default_links(IpFamily::V4);
            let v6 = candidates.default_links(IpFamily::V6);
            let wanted = match families {
                Families::V4 => v4,
                Families::V6 => v6,
                Families::Dual => v4.into_iter().filter(|index| v6.contains(index)).collect(),
            };
            let mut refused = Vec::new();
            for index in &wanted {
                match first(candidates, |link| {
                    if link.index != *index {
                        return Err("has no default route".to_owned());
                    }
                    candidates.interface(link, families, Given::default())
                }) {
                    Ok(interface) => return Ok(interface),
                    Err(interfaces) => refused = interfaces,
                }
            }
            if wanted.is_empty() {
                let reason = match families {
                    Families::Dual => "has not both an IPv4 and an IPv6 default route",
                    Families::V4 => "has no IPv4 default route",
                    Families::V6 => "has no IPv6 default route",
                };
                refused = first(candidates, |_| Err(reason.to_owned())).err().unwrap_or_default();
            }
            refuse(None, refused)
        }
        Selector::Name(name) => first(candidates, |link| {
            if link.name != *name {
                return Err("has another name".to_owned());
            }
            candidates.interface(link, families, Given::default())
        })
        .or_else(|interfaces| refuse(None, interfaces)),
        Selector::Pattern(pattern) => {
            let matches = |address: &IpAddr| pattern.is_match(&address.to_string());
            let by_address = first(candidates, |link| {
                let matching = |family| candidates.usable(link, family).into_iter().find(&matches);
                let given = Given {
                    v4: families.v4().then(|| matching(IpFamily::V4)).flatten(),
                    v6: families.v6().then(|| matching(IpFamily::V6)).flatten(),
                };
                if given.v4.is_some() != families.v4() || given.v6.is_some() != families.v6() {
                    return Err(String::new());
                }
                candidates.interface(link, families, given)
            });
            by_address.or_else(|_| {
                first(candidates, |link| {
                    if !pattern.is_match(&link.name) {
                        return Err("matches neither by a usable address nor by name".to_owned());
                    }
                    candidates.interface(link, families, Given::default())
                })
                .or_else(|interfaces| refuse(None, interfaces))
            })
        }
    }
}

/// Addresses that are decided already.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Given {
    fn missing_on(&self, candidates: &Candidates, link: &Link) -> Option<IpAddr> {
        let has =
            |address: &IpAddr| candidates.of(link.index).any(|it| it.address.ip() == *address);
        self.v4.iter().chain(&self.v6).find(|address| !has(address)).copied()
    }
}

impl Candidates {
    fn of(&self, link: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |address| address.link == link)
    }

    /// The same without the devices that have an address of pods; borrowed if there are none.
    fn without_those_of_pods(&self) -> Cow<'_, Self> {
        let leads_to_pods = |link: &Link| {
            self.of(link.index)
                .any(|it| self.pods.iter().any(|range| range.contains(&it.address.ip())))
        };
        if !self.links.iter().any(leads_to_pods) {
            return Cow::Borrowed(self);
        }
        let mut fewer = self.clone();
        fewer.links.retain(|link| !leads_to_pods(link));
        Cow::Owned(fewer)
    }

    /// The usable addresses of a device, best first.
    fn usable(&self, link: &Link, family: IpFamily) -> Vec<IpAddr> {
        let usable = self
            .of(link.index)
            .filter(|it| !it.deprecated && IpFamily::of(&it.address.ip()) == family);
        let mut usable: Vec<_> =
            usable.filter_map(|it| Some((reach_of(it.address.ip())?, it))).collect();
        // An IPv6 address without a network of its own is nothing special: DHCP gives such.
        let is_alone = |it: &Address| matches!(it.address, IpNetwork::V4(v4) if v4.prefix() == 32);
        let has_lease = usable.iter().any(|(_, it)| !it.permanent && !is_alone(it));
        let lasts = |it: &Address| match it.permanent {
            true if has_lease && is_alone(it) => 2_u8,
            true => 0,
            false => 1,
        };
        // Stable, so that the kernel's order decides between equals.
        usable.sort_by_key(|(reach, it)| {
            let is_other = !self.preferred.contains(&it.address.ip());
            (is_other, *reach, it.tentative, lasts(it), it.temporary)
        });
        usable.into_iter().map(|(_, it)| it.address.ip()).collect()
    }

    fn interface(
        &self,
        link: &Link,
        families: Families,
        given: Given,
    ) -> Result<Interface, String> {
        if link.mtu == 0 {
            return Err("has MTU 0".to_owned());
        }
        let first = |family| self.usable(link, family).into_iter().next();
        let v4 = families.v4().then(|| given.v4.or_else(|| first(IpFamily::V4)));
        let v6 = families.v6().then(|| given.v6.or_else(|| first(IpFamily::V6)));
        if v4 == Some(None) {
            return Err("has no usable IPv4 address".to_owned());
        }
        if v6 == Some(None) {
            return Err("has no usable IPv6 address".to_owned());
        }
        Ok(Interface {
            name: link.name.clone(),
            index: link.index,
            mtu: link.mtu,
            v4: v4.flatten().and_then(only_v4),
            v6: v6.flatten().and_then(only_v6),
            is_doubtful: false,
        })
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
                Via::Direct | Via::Gateway(_) | Via::Other | Via::Program(_) => route.link,
            })
            .collect()
    }
}

/// The first device that `take` takes, or why each was not taken.
fn first(
    candidates: &Candidates,
    take: impl Fn(&Link) -> Result<Interface, String>,
) -> Result<Interface, Vec<NotTaken>> {
    let mut links: Vec<_> = candidates.links.iter().collect();
    links.sort_by_key(|link| link.index);
    let mut not_taken = Vec::new();
    for link in links {
        match take(link) {
            Ok(interface) => return Ok(interface),
            Err(reason) => not_taken.push(NotTaken {
                name: link.name.clone(),
                addresses: candidates.of(link.index).map(|it| it.address).collect(),
                reason,
            }),
        }
    }
    Err(not_taken)
}

/// 0 for a global address, 1 for a link-local one, `None` for one that cannot be used between
/// machines.
fn reach_of(address: IpAddr) -> Option<u8> {
    let (unusable, link_local) = match address {
        IpAddr::V4(v4) => (
            v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast(),
            v4.is_link_local(),
        ),
        IpAddr::V6(v6) => (
            v6.is_unspecified() || v6.is_loopback() || v6.is_multicast(),
            v6.is_unicast_link_local(),
        ),
    };
    (!unusable).then_some(u8::from(link_local))
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
mod tests;
