//! Whatever happens to a machine, an address that peers know stays while it is usable.

use std::net::IpAddr;

use proptest::{prelude::*, sample::select};

use super::*;
use crate::state::LinkKind;

/// What may happen.
#[derive(Clone, Debug)]
enum Event {
    /// The address with this number appears on the interface with this number, or vanishes.
    Address(usize, usize),
    /// The kernel deprecates it, or takes that back.
    Deprecated(usize, usize),
    /// Another machine is found to have it.
    Duplicate(usize, usize),
    /// The kernel looks for duplicates, or is done.
    Tentative(usize, usize),
    Carrier(usize),
    Down(usize),
    /// The default route of a family through this interface appears or vanishes.
    Route(usize, bool),
    /// The interface is deleted, or made.
    Unplug(usize),
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let (at, interface) = (0..ADDRESSES.len(), 0_usize..2);
    let address = (interface.clone(), at);
    prop_oneof![
        6 => address.clone().prop_map(|(interface, at)| Event::Address(interface, at)),
        2 => address.clone().prop_map(|(interface, at)| Event::Deprecated(interface, at)),
        1 => address.clone().prop_map(|(interface, at)| Event::Duplicate(interface, at)),
        2 => address.prop_map(|(interface, at)| Event::Tentative(interface, at)),
        1 => interface.clone().prop_map(Event::Carrier),
        1 => interface.clone().prop_map(Event::Down),
        2 => (interface.clone(), any::<bool>()).prop_map(|(interface, v6)| Event::Route(interface, v6)),
        1 => interface.prop_map(Event::Unplug),
        1 => Just(Event::Restart),
    ]
}

/// A machine with two network cards.
#[derive(Default)]
struct World {
    plugged: [bool; 2],
    down: [bool; 2],
    dark: [bool; 2],
    routes: Vec<(usize, bool)>,
    addresses: Vec<Address>,
}

impl World {
    fn happen(&mut self, event: &Event) {
        let toggle = |flag: &mut bool| *flag = !*flag;
        match event {
            Event::Address(interface, at) => {
                let address = Address::new(index(*interface), ADDRESSES[*at].parse().unwrap());
                let there = self
                    .addresses
                    .iter()
                    .position(|it| (it.link, it.address) == (address.link, address.address));
                match there {
                    Some(there) => drop(self.addresses.remove(there)),
                    None => self.addresses.insert(0, address),
                }
            }
            Event::Deprecated(interface, at) => {
                self.with(*interface, *at, |it| toggle(&mut it.deprecated))
            }
            Event::Duplicate(interface, at) => {
                self.with(*interface, *at, |it| toggle(&mut it.duplicate))
            }
            Event::Tentative(interface, at) => {
                self.with(*interface, *at, |it| toggle(&mut it.tentative))
            }
            Event::Carrier(interface) => toggle(&mut self.dark[*interface]),
            Event::Down(interface) => toggle(&mut self.down[*interface]),
            Event::Route(interface, v6) => {
                let route = (*interface, *v6);
                match self.routes.iter().position(|it| *it == route) {
                    Some(there) => drop(self.routes.remove(there)),
                    None => self.routes.insert(0, route),
                }
            }
            Event::Unplug(interface) => {
                toggle(&mut self.plugged[*interface]);
                self.addresses.retain(|it| it.link != index(*interface));
                self.routes.retain(|it| it.0 != *interface);
            }
            Event::Restart => {}
        }
    }

    fn with(&mut self, interface: usize, at: usize, change: impl Fn(&mut Address)) {
        let address = ADDRESSES[at].parse().unwrap();
        let mut all = self.addresses.iter_mut();
        if let Some(it) = all.find(|it| (it.link, it.address) == (index(interface), address)) {
            change(it);
        }
    }

    fn candidates(&self) -> Candidates {
        let there = [0, 1].into_iter().filter(|interface| self.plugged[*interface]);
        let links: Vec<_> = there.map(|interface| self.link(interface)).collect();
        let route = |(interface, v6): &(usize, bool)| {
            let (to, via) =
                if *v6 { ("::/0", "2001:db8::fe") } else { ("0.0.0.0/0", "192.0.2.254") };
            Route::new(to.parse().unwrap(), 3).via_gateway(via.parse().unwrap(), index(*interface))
        };
        let is_there = |link: u32| links.iter().any(|it| it.index == link);
        let addresses = self.addresses.iter().copied().filter(|it| is_there(it.link)).collect();
        let default_routes = self
            .routes
            .iter()
            .map(route)
            .filter(|route| route.link.is_some_and(is_there))
            .collect();
        Candidates { links, addresses, default_routes, ..Candidates::default() }
    }

    fn link(&self, interface: usize) -> Link {
        let up = !self.down[interface];
        Link {
            index: index(interface),
            name: format!("eth{interface}"),
            kind: LinkKind::Veth,
            mac: None,
            mtu: 1500,
            queue: 0,
            up,
            running: up && !self.dark[interface],
            loopback: false,
            controller: None,
            parent: None,
            link_local: true,
        }
    }

    /// Whether an address may stay where it is.
    fn is_usable(&self, interface: &str, address: IpAddr) -> bool {
        let of = usize::from(interface == "eth1");
        let there = |it: &Address| it.link == index(of) && it.address.ip() == address;
        self.plugged[of]
            && !self.down[of]
            && self.addresses.iter().any(|it| there(it) && !it.duplicate)
    }
}

fn index(interface: usize) -> u32 {
    interface as u32 + 2
}

/// A second one of each family, one that moves between machines, a private one, and those that are never published.
const ADDRESSES: [&str; 9] = [
    "192.0.2.1/24",
    "192.0.2.2/24",
    "192.0.2.100/32",
    "169.254.7.7/16",
    "2001:db8::1/64",
    "2001:db8::2/64",
    "2001:db8::100/128",
    "fd00:9::1/64",
    "fe80::1/64",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_published_address_changes_only_when_it_has_become_unusable(
        events in prop::collection::vec(event(), 1..60),
        families in select(vec![Families::Dual, Families::V4, Families::V6]),
        by_name: bool,
    ) {
        let selector = if by_name { Selector::Name("eth0".to_owned()) } else { Selector::DefaultRoute };
        let mut search = Search::new(families, vec![selector]);
        let mut world = World { plugged: [true; 2], ..World::default() };
        for event in &events {
            world.happen(event);
            if matches!(event, Event::Restart) {
                search.current = None;
            }
            let Ok(chosen) = choose(&world.candidates(), &search) else { continue };
            for family in IpFamily::ALL {
                let before = search.published.iter().copied().find(|it| IpFamily::of(it) == family);
                let now = chosen.address(family);
                // A restarted node finds it again if its options still lead there.
                let interface = match &search.current {
                    Some(current) => Some(current.name.as_str()),
                    None => by_name.then_some("eth0"),
                };
                if let (Some(before), Some(interface)) = (before, interface)
                    && world.is_usable(interface, before)
                {
                    prop_assert_eq!(now, Some(before), "{:?} after {:?}", family, event);
                    prop_assert!(!chosen.faults.contains(&InterfaceFault::NoAddress(family)));
                }
                if let Some(now) = now {
                    let (is_v4_local, is_v6_local) = match now {
                        IpAddr::V4(v4) => (v4.is_link_local(), false),
                        IpAddr::V6(v6) => (false, v6.is_unicast_link_local()),
                    };
                    prop_assert!(!is_v4_local && !is_v6_local, "{} is published", now);
                }
                // While a family has no usable address, the last one stays, unless nobody remembers it.
                prop_assert!(now.is_some() || before.is_none() || search.current.is_none());
            }
            search.published = IpFamily::ALL.into_iter().filter_map(|family| chosen.address(family)).collect();
            search.current = Some(chosen);
        }
    }
}
