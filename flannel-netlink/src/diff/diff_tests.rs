use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::state::{Address, ForwardingEntry, MacAddress, Neighbour, Nexthop, Route, Via};

const LINK: u32 = 3;
const PROTOCOL: u8 = 90;

/// A kernel that does one step at a time.
#[derive(Clone, Debug, Default)]
struct World(BTreeMap<Key, Vec<Object>>);

impl World {
    fn of(objects: &[Object]) -> Self {
        let mut world = Self::default();
        for object in objects {
            world.0.entry(object.key()).or_default().push(*object);
        }
        world
    }

    fn apply(&mut self, op: &Op) {
        let place = self.0.entry(op.object().key()).or_default();
        match op {
            Op::Delete(object) => {
                let at = place.iter().position(|it| it == object);
                place.remove(at.expect("only what is there is deleted"));
            }
            Op::Replace(object) => match place.first_mut() {
                Some(first) => *first = *object,
                None => place.push(*object),
            },
        }
        self.0.retain(|_, place| !place.is_empty());
    }

    fn objects(&self) -> Vec<Object> {
        self.0.values().flatten().copied().collect()
    }

    /// The first route whose nexthop object, neighbour or forwarding entry is missing.
    fn broken_route(&self) -> Option<Object> {
        self.objects().into_iter().find(|object| {
            let Object::Route(route) = object else {
                return false;
            };
            let gateway = match route.via {
                Via::Gateway(gateway) => gateway,
                Via::Nexthop(id) => match self.0.get(&Key::Nexthop(id)).map(|it| it[0]) {
                    Some(Object::Nexthop(nexthop)) => nexthop.gateway,
                    _ => return true,
                },
                Via::Direct | Via::Other => return false,
            };
            let Some([Object::Neighbour(Neighbour { mac: Some(mac), .. })]) =
                self.0.get(&Key::Neighbour(LINK, gateway)).map(Vec::as_slice)
            else {
                return true;
            };
            !self.0.contains_key(&Key::ForwardingEntry(LINK, *mac))
        })
    }
}

/// A peer: its number makes the subnet, its version the Ethernet address and the underlay address.
#[derive(Clone, Copy, Debug)]
struct Peer {
    version: u8,
    by_nexthop: bool,
}

fn objects(peers: &BTreeMap<u8, Peer>) -> Vec<Object> {
    peers
        .iter()
        .flat_map(|(number, peer)| {
            let gateway: IpAddr = Ipv4Addr::new(10, 244, *number, 0).into();
            let mac = MacAddress::new([0x0e, 0, 0, 0, *number, peer.version]);
            let route = Route::new(format!("10.244.{number}.0/24").parse().unwrap(), PROTOCOL);
            let id = u32::from(*number) + 100;
            let mut objects = vec![
                Object::from(Neighbour::new(LINK, gateway, mac)),
                ForwardingEntry::new(LINK, mac, Ipv4Addr::new(192, 0, 2, peer.version).into())
                    .into(),
            ];
            if peer.by_nexthop {
                objects.push(Nexthop::new(id, LINK, gateway, PROTOCOL).into());
                objects.push(route.via_nexthop(id).into());
            } else {
                objects.push(route.via_gateway(gateway, LINK).into());
            }
            objects
        })
        .collect()
}

fn peers() -> impl Strategy<Value = BTreeMap<u8, Peer>> {
    let peer =
        (0_u8..3, any::<bool>()).prop_map(|(version, by_nexthop)| Peer { version, by_nexthop });
    prop::collection::btree_map(0_u8..6, peer, 0..6)
}

proptest! {
    #[test]
    fn from_any_state_the_goal_is_reached_and_then_nothing_is_left_to_do(
        desired in peers(), before in peers(),
        lost in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        doubled in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let desired = objects(&desired);
        let mut actual = objects(&before);
        actual.push(Address::new(LINK, "10.244.9.0/32".parse().unwrap()).into());
        for index in lost {
            if !actual.is_empty() {
                actual.swap_remove(index.index(actual.len()));
            }
        }
        // A second route under the same key, as `ip route append` makes it.
        for index in doubled {
            let is_route = |it: &&Object| matches!(it, Object::Route(_));
            let routes: Vec<_> = actual.iter().filter(is_route).copied().collect();
            if routes.is_empty() {
                continue;
            }
            if let Object::Route(route) = routes[index.index(routes.len())] {
                let other = route.via_gateway("192.0.2.99".parse().unwrap(), 9);
                if !actual.contains(&other.into()) {
                    actual.push(other.into());
                }
            }
        }
        let mut world = World::of(&actual);
        for op in diff(&desired, &actual) {
            world.apply(&op);
        }
        let mut goal = World::of(&desired).objects();
        let mut reached = world.objects();
        goal.sort_by_key(Object::key);
        reached.sort_by_key(Object::key);
        prop_assert_eq!(&reached, &goal);
        prop_assert_eq!(diff(&desired, &reached), vec![]);
    }

    #[test]
    fn no_step_leaves_a_route_without_what_it_needs(desired in peers(), before in peers()) {
        let (desired, actual) = (objects(&desired), objects(&before));
        let mut world = World::of(&actual);
        prop_assert_eq!(world.broken_route(), None);
        for op in diff(&desired, &actual) {
            world.apply(&op);
            prop_assert_eq!(world.broken_route(), None, "after {:?}", op);
        }
    }
}

#[test]
fn a_peer_with_a_new_ethernet_address_keeps_no_stale_forwarding_entry() {
    let at = |version| objects(&BTreeMap::from([(1, Peer { version, by_nexthop: true })]));
    let ops = diff(&at(2), &at(1));
    let shown: Vec<_> = ops
        .iter()
        .map(|op| match op {
            Op::Delete(object) => format!("delete {object}"),
            Op::Replace(object) => format!("replace {object}"),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "replace forwarding entry 0e:00:00:00:01:02 on device 3 to 192.0.2.2",
            "replace neighbour 10.244.1.0 on device 3 at 0e:00:00:00:01:02",
            "delete forwarding entry 0e:00:00:00:01:01 on device 3 to 192.0.2.1",
        ]
    );
}

#[test]
fn a_second_route_under_our_key_goes_and_ours_stays() {
    let ours = Route::new("10.1.0.0/24".parse().unwrap(), PROTOCOL)
        .via_gateway("192.0.2.2".parse().unwrap(), LINK);
    let theirs = ours.via_gateway("192.0.2.3".parse().unwrap(), LINK);
    let (ours, theirs) = (Object::from(ours), Object::from(theirs));
    assert_eq!(diff(&[ours], &[theirs, ours]), [Op::Delete(theirs)]);
    assert_eq!(diff(&[ours], &[ours, theirs]), [Op::Delete(theirs)]);
}

#[test]
fn a_route_that_leads_elsewhere_is_replaced_in_place() {
    let block = "fd00:1::/64".parse().unwrap();
    let before = Object::from(Route::new(block, PROTOCOL).via_nexthop(100));
    let nexthop = Nexthop::new(101, LINK, "fd00:1::".parse().unwrap(), PROTOCOL).into();
    let after = Object::from(Route::new(block, PROTOCOL).via_nexthop(101));
    let ops = [Op::Replace(nexthop), Op::Replace(after)];
    assert_eq!(diff(&[after, nexthop], &[before]), ops);
}

#[test]
fn a_route_that_loses_its_settings_is_never_away() {
    let plain = Route::new("10.1.0.0/24".parse().unwrap(), PROTOCOL).via_nexthop(100);
    let (before, after) = (Object::from(Route { mtu: Some(1400), ..plain }), Object::from(plain));
    let between = Object::from(Route { protocol: Route::BOOT, ..plain });
    assert_eq!(diff(&[after], &[before]), [Op::Replace(between), Op::Replace(after)]);
    assert_eq!(diff(&[after], &[between]), [Op::Replace(after)]);
}

#[test]
fn a_route_that_takes_over_no_settings_is_replaced_at_once() {
    let plain = Route::new("10.1.0.0/24".parse().unwrap(), PROTOCOL).via_nexthop(100);
    let with_mtu = |route: Route| Route { mtu: Some(1400), ..route };
    let ipv6 = Route::new("fd00:1::/64".parse().unwrap(), PROTOCOL).via_nexthop(100);
    let by_gateway = plain.via_gateway("192.0.2.2".parse().unwrap(), LINK);
    for (before, after) in [
        (with_mtu(ipv6), ipv6),
        (with_mtu(by_gateway), by_gateway),
        (with_mtu(plain), Route { mtu: Some(1300), ..plain }),
        (with_mtu(by_gateway), plain),
        (with_mtu(Route { protocol: Route::BOOT, ..plain }), plain),
        (Route { scope: 253, ..plain }, plain),
    ] {
        let (before, after) = (Object::from(before), Object::from(after));
        assert_eq!(diff(&[after], &[before]), [Op::Replace(after)], "{before}");
    }
}
