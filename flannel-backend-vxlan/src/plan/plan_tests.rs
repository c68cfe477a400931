use flannel_core::{LeaseAttrs, RawJson};
use flannel_netlink::{
    Op, diff,
    state::{Key, Via},
};
use proptest::prelude::*;

use super::*;
use crate::underlay::Overlay;

const MAC4: &str = "02:00:00:00:00:24";
const MAC6: &str = "02:00:00:00:00:26";

fn data(mac: &str) -> Option<RawJson> {
    Some(RawJson::new(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).unwrap())
}

fn peer(key: &str) -> Lease {
    let attrs = LeaseAttrs {
        public_ip: Some([192, 0, 2, 2].into()),
        public_ipv6: Some("2001:db8::2".parse().unwrap()),
        backend_type: "vxlan".into(),
        backend_data: data(MAC4),
        backend_v6_data: data(MAC6),
        second: None,
    };
    Lease::new(key.parse().unwrap(), attrs)
}

fn own(key: &str) -> Lease {
    let attrs = LeaseAttrs {
        public_ip: Some([203, 0, 113, 1].into()),
        backend_type: "vxlan".into(),
        ..LeaseAttrs::default()
    };
    Lease::new(key.parse().unwrap(), attrs)
}

fn vtep(family: Family, link: u32, mac: u8, local: &str) -> Vtep {
    let mac = MacAddress::new([2, 0, 0, 0, 0, mac]);
    Vtep { family, link, mac, local: local.parse().unwrap(), mtu: 1500 - family.overhead() }
}

fn facts() -> Facts {
    let vteps =
        vec![vtep(Family::V4, 4, 0x14, "192.0.2.1"), vtep(Family::V6, 6, 0x16, "2001:db8::1")];
    let own = own("10.3.1.0-24&fd00:1::-64");
    let limits = BTreeMap::new();
    Facts { own, vteps, uplink: 7, on_link: None, protocol: 99, table: 254, limits }
}

fn direct() -> Facts {
    let nic = Route::new("192.0.2.0/24".parse().unwrap(), 2).direct(7);
    let overlay = Overlay { protocol: 99, networks: vec![] };
    Facts { on_link: Some(OnLink::new([nic], &overlay)), ..facts() }
}

fn plan(facts: &Facts, peer: &Lease) -> PeerPlan {
    facts.plan(peer, |_, _| None)
}

fn tunnel(block: &str, link: u32, mac: &str, remote: &str) -> [Object; 3] {
    let block: IpNetwork = block.parse().unwrap();
    let (gateway, mac) = (block.network(), mac.parse().unwrap());
    let mut route = Route::new(block, 99).via_gateway(gateway, link);
    route.onlink = true;
    [
        Neighbour::new(link, gateway, mac).into(),
        ForwardingEntry::new(link, mac, remote.parse().unwrap()).into(),
        route.into(),
    ]
}

#[test]
fn each_family_that_both_have_gets_its_three_objects() {
    let v4 = tunnel("10.3.2.0/24", 4, MAC4, "192.0.2.2");
    let v6 = tunnel("fd00:2::/64", 6, MAC6, "2001:db8::2");
    let dual = peer("10.3.2.0-24&fd00:2::-64");
    assert_eq!(plan(&facts(), &dual).objects, [&v4[..], &v6[..]].concat());
    assert_eq!(plan(&facts(), &peer("10.3.2.0-24")).objects, v4);
    let only4 = Facts { vteps: facts().vteps[..1].to_vec(), ..facts() };
    assert_eq!(plan(&only4, &dual).objects, v4);
}

#[test]
fn our_devices_have_the_address_of_the_subnet_itself() {
    let mut v6 = Address::new(6, "fd00:1::/128".parse().unwrap());
    v6.no_duplicate_detection = true;
    let mut v4 = Address::new(4, "10.3.1.0/32".parse().unwrap());
    v4.no_duplicate_detection = true;
    assert_eq!(facts().own_addresses(), [v4.into(), v6.into()]);
}

#[test]
fn a_peer_on_the_link_gets_a_plain_route_and_the_others_a_tunnel() {
    let route =
        Route::new("10.3.2.0/24".parse().unwrap(), 99).via_gateway("192.0.2.2".parse().unwrap(), 7);
    assert_eq!(plan(&direct(), &peer("10.3.2.0-24")).objects, [route.into()]);
    let mut far = peer("10.3.2.0-24");
    far.attrs.public_ip = Some([198, 51, 100, 2].into());
    let tunnel = tunnel("10.3.2.0/24", 4, MAC4, "198.51.100.2");
    assert_eq!(plan(&direct(), &far).objects, tunnel);
}

#[test]
fn a_peer_of_another_backend_is_skipped() {
    for theirs in ["host-gw", "", "VXLAN"] {
        let mut peer = peer("10.3.2.0-24");
        peer.attrs.backend_type = theirs.into();
        let plan = plan(&facts(), &peer);
        assert_eq!(plan.objects, []);
        let theirs = theirs.into();
        assert_eq!(plan.faults, [PeerFault::OtherBackend { ours: "vxlan".into(), theirs }]);
    }
}

#[test]
fn what_is_wrong_with_one_family_does_not_stop_the_other() {
    type Spoil = fn(&mut LeaseAttrs);
    let spoils: [(Spoil, &str); 9] = [
        (|attrs| attrs.public_ip = None, "it has an IPv4 subnet and no IPv4 address"),
        (|attrs| attrs.backend_data = None, "it has no VtepMAC"),
        (|attrs| attrs.backend_data = data(""), "VtepMAC is \"\""),
        (
            |attrs| attrs.backend_data = data("02:00:00:00:00:14"),
            "Ethernet address 02:00:00:00:00:14 is ours",
        ),
        (
            |attrs| attrs.backend_data = data("02:00:00:00:00:16"),
            "Ethernet address 02:00:00:00:00:16 is ours",
        ),
        (|attrs| attrs.public_ip = Some([192, 0, 2, 1].into()), "public address 192.0.2.1 is ours"),
        (
            |attrs| attrs.public_ip = Some([203, 0, 113, 1].into()),
            "public address 203.0.113.1 is ours",
        ),
        (|attrs| attrs.public_ip = Some([224, 0, 0, 1].into()), "no node is reached at 224.0.0.1"),
        (|attrs| attrs.public_ip = Some([10, 3, 2, 9].into()), "inside of its own subnet"),
    ];
    for (spoil, words) in spoils {
        let mut peer = peer("10.3.2.0-24&fd00:2::-64");
        spoil(&mut peer.attrs);
        let plan = plan(&facts(), &peer);
        assert_eq!(plan.objects, tunnel("fd00:2::/64", 6, MAC6, "2001:db8::2"), "{words}");
        let faults: Vec<_> = plan.faults.iter().map(ToString::to_string).collect();
        assert!(faults.len() == 1 && faults[0].contains(words), "{faults:?} for {words}");
    }
}

#[test]
fn a_peer_whose_subnet_has_the_address_of_our_card_is_refused() {
    let facts = facts();
    for block in ["192.0.2.0-24", "192.0.0.0-16", "192.0.2.1-31"] {
        let key = Subnet::of_any_spelling(block).unwrap().to_string();
        let mut peer = peer(&key);
        peer.attrs.public_ip = Some([198, 51, 100, 2].into());
        let plan = plan(&facts, &peer);
        assert_eq!(plan.objects, []);
        let fault = plan.faults[0].to_string();
        assert!(
            fault.ends_with("it contains the address 192.0.2.1 of our network card"),
            "{fault}"
        );
    }
}

#[test]
fn a_peer_whose_ethernet_address_another_has_is_refused_and_the_other_named() {
    let conflict = "10.3.0.0-24".parse().unwrap();
    let plan = facts().plan(&peer("10.3.2.0-24"), |_, _| Some(conflict));
    assert_eq!(plan.objects, []);
    assert!(plan.faults[0].to_string().contains("is that of the peer 10.3.0.0"), "{plan:?}");
}

proptest! {
    /// Whatever a peer says, no route stands without its neighbour and forwarding entry, and nothing is outside of its subnet.
    #[test]
    fn plans_are_whole(
        v4 in proptest::option::of(any::<[u8; 4]>()),
        mac: [u8; 6],
        text in "\\PC{0,20}",
        garbage: bool,
        on_link: bool,
    ) {
        let mut peer = peer("10.3.2.0-24");
        peer.attrs.public_ip = v4.map(Into::into);
        let mac = MacAddress::new(mac);
        peer.attrs.backend_data =
            if garbage { RawJson::new(&text).ok() } else { data(&mac.to_string()) };
        let facts = if on_link { direct() } else { facts() };
        let plan = plan(&facts, &peer);
        match &plan.objects[..] {
            [] => prop_assert_eq!(plan.faults.len(), 1),
            [Object::Route(route)] => {
                prop_assert!(on_link && route.link == Some(7));
                prop_assert_eq!(route.destination.to_string(), "10.3.2.0/24");
            }
            [Object::Neighbour(neighbour), Object::ForwardingEntry(entry), Object::Route(route)] => {
                prop_assert_eq!(neighbour.mac, Some(entry.mac));
                prop_assert!(entry.mac.is_unicast() && entry.remote.is_some_and(is_unicast));
                prop_assert_eq!(route.via, Via::Gateway(neighbour.address));
                prop_assert_eq!(route.destination.to_string(), "10.3.2.0/24");
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

/// What one peer has published, and whether it is on our link.
fn any_peer() -> impl Strategy<Value = (u8, u8, bool)> {
    (0..3_u8, 0..4_u8, any::<bool>())
}

fn planned(facts: &Facts, peers: &BTreeMap<u8, (u8, u8, bool)>) -> BTreeMap<Key, Object> {
    let mut objects: BTreeMap<_, _> =
        facts.own_addresses().into_iter().map(|it| (it.key(), it)).collect();
    for (number, (mac, address, direct)) in peers {
        let mut lease = peer(&format!("10.3.{number}.0-24&fd00:{number}::-64"));
        let third = if *direct { 2 } else { 3 };
        lease.attrs.public_ip = Some([192, 0, third, number * 4 + address + 2].into());
        lease.attrs.backend_data = data(&format!("02:00:00:04:{number:02x}:{mac:02x}"));
        lease.attrs.backend_v6_data = data(&format!("02:00:00:06:{number:02x}:{mac:02x}"));
        let plan = plan(facts, &lease);
        assert_eq!(plan.faults, [], "{lease:?}");
        objects.extend(plan.objects.into_iter().map(|it| (it.key(), it)));
    }
    objects
}

/// The first route into a tunnel whose neighbour or forwarding entry is missing.
fn broken(world: &BTreeMap<Key, Object>) -> Option<&Object> {
    world.values().find(|object| {
        let Object::Route(Route { via: Via::Gateway(gateway), link: Some(link), onlink, .. }) =
            object
        else {
            return false;
        };
        let neighbour = world.get(&Key::Neighbour(*link, *gateway));
        let entry = neighbour.and_then(|neighbour| match neighbour {
            Object::Neighbour(Neighbour { mac: Some(mac), .. }) => {
                world.get(&Key::ForwardingEntry(*link, *mac))
            }
            _ => None,
        });
        *onlink && entry.is_none()
    })
}

proptest! {
    /// Peers come and go, get other Ethernet addresses and public addresses, and move behind a router and back: each time the diff
    /// leads from the one plan to the other and to nothing else, a second one is empty, and at no moment stands a route into a
    /// tunnel without its neighbour and forwarding entry.
    #[test]
    fn from_plan_to_plan_no_step_breaks_a_way_and_nothing_stale_is_left(
        states in proptest::collection::vec(
            proptest::collection::btree_map(2..6_u8, any_peer(), 0..5), 1..4,
        ),
        direct_routing: bool,
    ) {
        let facts = if direct_routing { direct() } else { facts() };
        let mut world = BTreeMap::new();
        for peers in states {
            let goal = planned(&facts, &peers);
            for op in diff(goal.values(), world.clone().values()) {
                match op {
                    Op::Delete(object) => {
                        prop_assert_eq!(world.remove(&object.key()), Some(object));
                    }
                    Op::Replace(object) => drop(world.insert(object.key(), object)),
                }
                prop_assert_eq!(broken(&world), None, "after {:?}", op);
            }
            prop_assert_eq!(&world, &goal);
            prop_assert_eq!(diff(goal.values(), world.values()), vec![]);
        }
    }
}

#[test]
fn a_way_that_takes_less_makes_routes_that_say_so() {
    let peer = peer("10.3.2.0-24&fd00:2::-64");
    let mtus = |facts: Facts, v4: u32, v6: u32| -> Vec<_> {
        let [ip4, ip6] = ["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().unwrap());
        let facts = Facts { limits: BTreeMap::from([(ip4, v4), (ip6, v6)]), ..facts };
        let plan = plan(&facts, &peer);
        let mtu = |object: &Object| match object {
            Object::Route(route) => Some(route.mtu),
            _ => None,
        };
        plan.objects.iter().filter_map(mtu).collect()
    };
    assert_eq!(mtus(facts(), 1400, 1400), [Some(1350), Some(1330)]);
    assert_eq!(mtus(facts(), 1500, 1499), [None, Some(1429)]);
    assert_eq!(mtus(facts(), 625, 1349), [None, None], "less than a route may say");
    assert_eq!(mtus(direct(), 1400, 1400), [Some(1400), Some(1330)]);
    let other = Facts { limits: BTreeMap::from([([203, 0, 113, 7].into(), 1400)]), ..facts() };
    assert_eq!(plan(&other, &peer), plan(&facts(), &peer));
}

#[test]
fn a_path_that_is_too_narrow_for_ipv6_gets_no_tunnel_of_it() {
    let peer = peer("10.3.2.0-24&fd00:2::-64");
    let ip6 = peer.attrs.public_ipv6.unwrap().into();
    let plan = |limit| plan(&Facts { limits: BTreeMap::from([(ip6, limit)]), ..facts() }, &peer);
    let narrow = plan(1349);
    let (family, path_mtu, needed) = (flannel_core::Family::Ipv6, 1349, 1350);
    assert_eq!(narrow.faults, [PeerFault::PathTooNarrow { family, path_mtu, needed }]);
    let refusal = Route::new("fd00:2::/64".parse().unwrap(), 99).unreachable();
    assert_eq!(narrow.objects.len(), 4, "the three of IPv4: {:?}", narrow.objects);
    assert!(narrow.objects.contains(&refusal.into()));
    assert_eq!(plan(1350).faults, []);
}
