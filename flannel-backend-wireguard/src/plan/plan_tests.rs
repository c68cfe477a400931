use flannel_core::{LeaseEvent, NetworkConfig, Peers, RawJson};
use proptest::prelude::*;

use super::*;
use crate::{KIND, arrivals::Arrivals};

const DUAL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

fn data(n: u8, port: u16) -> Option<RawJson> {
    Some(lease_data::print(PublicKey::new([n; 32]), port))
}

fn lease(n: u8) -> Lease {
    let attrs = LeaseAttrs {
        public_ip: Some([192, 0, 2, n].into()),
        public_ipv6: Some(format!("2001:db8::{n}").parse().unwrap()),
        backend_type: KIND.into(),
        backend_data: data(n, 51820),
        backend_v6_data: data(n, 51821),
        second: None,
    };
    Lease::new(format!("10.3.{n}.0-24&fd00:10:3:{n}::-64").parse().unwrap(), attrs)
}

fn facts(json: &str, families: &[Family]) -> Facts {
    let options = flannel_core::Fields::parse(json).unwrap();
    let settings = Settings::read(&options, families.to_vec()).unwrap();
    Facts {
        tunnels: settings.tunnels(),
        settings,
        own_key: PublicKey::new([1; 32]),
        // A router in front of us has the public one.
        local: (Some([192, 0, 2, 100].into()), Some("2001:db8::1".parse().unwrap())),
    }
}

/// As at the start: all came together.
fn planned(facts: &Facts, peers: &Peers) -> Plan {
    facts.plan(peers.own(), Arrivals::default().newest_first(peers))
}

fn peers(leases: impl IntoIterator<Item = Lease>) -> Peers {
    let config: NetworkConfig =
        r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:3::/48"}"#.parse().unwrap();
    let mut peers = Peers::new(config, lease(1));
    peers.fold(LeaseEvent::reset(leases));
    peers
}

fn key(n: u8) -> PublicKey {
    PublicKey::new([n; 32])
}

fn blocks(texts: &[&str]) -> BTreeSet<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn each_family_has_its_own_device_over_itself() {
    let plan = planned(&facts("{}", &DUAL), &peers([lease(2)]));
    let [v4, v6] = &*plan.peers else { panic!() };
    assert_eq!(v4[&key(2)].endpoint, "192.0.2.2:51820".parse().unwrap());
    assert_eq!(v4[&key(2)].allowed_ips, blocks(&["10.3.2.0/24"]));
    assert_eq!(v6[&key(2)].endpoint, "[2001:db8::2]:51821".parse().unwrap());
    assert_eq!(v6[&key(2)].allowed_ips, blocks(&["fd00:10:3:2::/64"]));
    assert_eq!(plan.faults, BTreeMap::new());
    let alone = planned(&facts("{}", &DUAL[..1]), &peers([lease(2)]));
    assert_eq!(alone.peers.len(), 1, "a family that the network has not is not looked at");
}

#[test]
fn one_device_for_both_families_is_over_what_the_mode_says() {
    let endpoint = |mode: &str, attrs: fn(&mut LeaseAttrs), local| {
        let mut facts = facts(&format!(r#"{{"Mode":"{mode}"}}"#), &DUAL);
        facts.local.1 = local;
        let mut lease = lease(2);
        attrs(&mut lease.attrs);
        let plan = planned(&facts, &peers([lease]));
        assert_eq!(plan.faults, BTreeMap::new());
        assert_eq!(
            plan.peers[0][&key(2)].allowed_ips,
            blocks(&["10.3.2.0/24", "fd00:10:3:2::/64"])
        );
        plan.peers[0][&key(2)].endpoint.to_string()
    };
    let global = Some("2001:db8::1".parse().unwrap());
    let private: fn(&mut LeaseAttrs) = |attrs| attrs.public_ip = Some([10, 0, 0, 2].into());
    assert_eq!(endpoint("ipv4", |_| (), global), "192.0.2.2:51820");
    assert_eq!(endpoint("ipv6", |_| (), global), "[2001:db8::2]:51821");
    assert_eq!(endpoint("auto", |_| (), global), "192.0.2.2:51820");
    assert_eq!(endpoint("auto", private, global), "[2001:db8::2]:51821");
    assert_eq!(endpoint("auto", private, None), "10.0.0.2:51820");
    assert_eq!(endpoint("auto", private, Some("fd00::1".parse().unwrap())), "10.0.0.2:51820");
    let unique = |attrs: &mut LeaseAttrs| {
        attrs.public_ip = Some([10, 0, 0, 2].into());
        attrs.public_ipv6 = Some("fd00::2".parse().unwrap());
    };
    assert_eq!(endpoint("auto", unique, global), "10.0.0.2:51820");
    assert_eq!(endpoint("auto", |attrs| attrs.public_ipv6 = None, global), "192.0.2.2:51820");
    assert_eq!(endpoint("auto", |attrs| attrs.public_ip = None, global), "[2001:db8::2]:51821");
}

#[test]
fn a_peer_without_a_port_is_reached_at_ours() {
    let mut old = lease(2);
    let json = r#"{"PublicKey":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}"#;
    (old.attrs.backend_data, old.attrs.backend_v6_data) =
        (Some(RawJson::new(json).unwrap()), Some(RawJson::new(json).unwrap()));
    let options = r#"{"ListenPort":7,"ListenPortV6":8}"#;
    let plan = planned(&facts(options, &DUAL), &peers([old]));
    let ports: Vec<_> = plan.peers.iter().map(|peers| peers[&key(2)].endpoint.port()).collect();
    assert_eq!(ports, [7, 8]);
}

#[test]
fn what_would_harm_is_refused_and_costs_that_peer_alone() {
    type Change = fn(&mut Lease);
    let cases: [(&str, Change); 7] = [
        ("its public key is ours", |it| {
            (it.attrs.backend_data, it.attrs.backend_v6_data) = (data(1, 7), data(1, 7))
        }),
        ("its public key is that of the peer at", |it| {
            (it.attrs.backend_data, it.attrs.backend_v6_data) = (data(2, 51820), data(2, 51821))
        }),
        ("its public address 192.0.2.100 is ours", |it| {
            it.attrs.public_ip = Some([192, 0, 2, 100].into())
        }),
        ("no node is reached at ::", |it| it.attrs.public_ipv6 = Some(Ipv6Addr::UNSPECIFIED)),
        ("is inside of its own subnet", |it| it.attrs.public_ip = Some([10, 3, 3, 9].into())),
        ("it has no PublicKey", |it| it.attrs.backend_data = None),
        ("it has an IPv4 subnet and no IPv4 address", |it| it.attrs.public_ip = None),
    ];
    for (words, change) in cases {
        let mut bad = lease(3);
        change(&mut bad);
        let plan = planned(&facts("{}", &DUAL), &peers([lease(2), bad.clone()]));
        let faults = &plan.faults[&bad.subnet];
        assert!(faults[0].to_string().contains(words), "{words}: {faults:?}");
        assert_eq!(plan.faults.len(), 1, "{words}");
        assert!(plan.peers.iter().all(|peers| peers.contains_key(&key(2))), "{words}");
    }
    let mut other = lease(3);
    other.attrs.backend_type = "vxlan".into();
    let plan = planned(&facts("{}", &DUAL), &peers([other.clone()]));
    assert!(matches!(plan.faults[&other.subnet][..], [PeerFault::OtherBackend { .. }]));
}

#[test]
fn two_leases_of_one_node_are_one_peer() {
    let mut left = lease(3);
    left.attrs = lease(2).attrs;
    let plan = planned(&facts("{}", &DUAL), &peers([lease(2), left]));
    assert_eq!(plan.faults, BTreeMap::new());
    assert_eq!(plan.peers[0][&key(2)].allowed_ips, blocks(&["10.3.2.0/24", "10.3.3.0/24"]));
    assert_eq!(plan.holders[&key(2)].len(), 2);
}

#[test]
fn of_two_leases_with_one_block_the_newer_one_has_it() {
    // Left from before the network had IPv6, or from before the host was made anew with another key.
    let old = Lease::new("10.3.2.0-24".parse().unwrap(), lease(5).attrs);
    for mode in ["separate", "auto"] {
        let facts = facts(&format!(r#"{{"Mode":"{mode}"}}"#), &DUAL);
        let mut arrivals = Arrivals::default();
        let mut seen = |leases: &[&Lease]| {
            let peers = peers(leases.iter().copied().cloned());
            facts.plan(peers.own(), arrivals.newest_first(&peers))
        };
        let by_2 = "10.3.2.0/24 is that of the peer at 192.0.2.2:51820";
        let by_5 = "10.3.2.0/24 is that of the peer at 192.0.2.5:51820";
        // The lease with both families at the start, and then whichever came last.
        let both = lease(2);
        for (leases, loser, words) in [
            (vec![&old, &both], &old, by_2),
            (vec![&both], &old, ""),
            (vec![&old, &both], &both, by_5),
            (vec![&old], &both, ""),
            (vec![&old, &both], &old, by_2),
            (vec![&old, &both], &old, by_2),
        ] {
            let plan = seen(&leases);
            let faults: Vec<_> = plan.faults.into_iter().collect();
            match &faults[..] {
                [] => assert_eq!(words, ""),
                [(subnet, faults)] => {
                    assert_eq!(*subnet, loser.subnet, "{mode}");
                    assert!(faults[0].to_string().ends_with(words), "{mode}: {faults:?}");
                }
                _ => panic!("{faults:?}"),
            }
            // It keeps the block that nobody else has.
            let v6 = plan.blocks.get(&"fd00:10:3:2::/64".parse().unwrap());
            assert_eq!(v6.is_some(), leases.contains(&&both), "{mode}");
        }
    }
}

#[test]
fn a_node_that_moved_is_reached_where_its_newer_lease_says() {
    let (old, mut new) = (lease(2), lease(9));
    (new.attrs.backend_data, new.attrs.backend_v6_data) = (data(2, 51820), data(2, 51821));
    let facts = facts("{}", &DUAL);
    let mut arrivals = Arrivals::default();
    for leases in [vec![old.clone()], vec![old.clone(), new.clone()]] {
        let peers = peers(leases);
        let plan = facts.plan(peers.own(), arrivals.newest_first(&peers));
        let newest = peers.iter().last().unwrap();
        let v4 = &plan.peers[0][&key(2)];
        assert_eq!(Some(v4.endpoint.ip()), newest.attrs.public_ip.map(IpAddr::V4));
        assert_eq!(v4.allowed_ips.len(), peers.len(), "pods of both leases may be there");
        let faults: Vec<_> = plan.faults.iter().collect();
        if peers.len() == 1 {
            assert_eq!(faults, []);
            continue;
        }
        let [(subnet, named)] = &faults[..] else { panic!("{faults:?}") };
        assert_eq!(**subnet, old.subnet);
        let words = "its public key is that of the peer at 192.0.2.9:51820";
        assert!(named[0].to_string().ends_with(words), "{named:?}");
    }
}

fn any_lease() -> impl Strategy<Value = Lease> {
    let family = (0..6_u8, prop::option::of(0..6_u8), any::<u16>());
    let numbers = (2..9_u8, prop::option::of(2..9_u8));
    (numbers, family.clone(), family, any::<bool>()).prop_map(|((n, m), v4, v6, is_ours)| {
        let mut lease = lease(n);
        // The blocks are of different numbers, or one is missing.
        let v6_block = m.map(|m| format!("&fd00:10:3:{m}::-64")).unwrap_or_default();
        lease.subnet = format!("10.3.{n}.0-24{v6_block}").parse().unwrap();
        lease.attrs.public_ip = Some([192, 0, 2, v4.0].into());
        lease.attrs.backend_data = v4.1.and_then(|key| data(key, v4.2));
        lease.attrs.public_ipv6 = Some(format!("2001:db8::{}", v6.0).parse().unwrap());
        lease.attrs.backend_v6_data = v6.1.and_then(|key| data(key, v6.2));
        lease.attrs.backend_type = if is_ours { KIND.into() } else { "host-gw".into() };
        lease
    })
}

proptest! {
    #[test]
    fn no_block_is_of_two_peers_and_none_is_our_own(
        leases in prop::collection::vec(any_lease(), 0..12),
        mode in prop::sample::select(vec!["separate", "auto", "ipv4", "ipv6"]),
    ) {
        let facts = facts(&format!(r#"{{"Mode":"{mode}"}}"#), &DUAL);
        let peers = peers(leases);
        let plan = planned(&facts, &peers);
        for peers in &plan.peers {
            let blocks: Vec<_> = peers.values().flat_map(|spec| &spec.allowed_ips).collect();
            prop_assert_eq!(blocks.iter().collect::<BTreeSet<_>>().len(), blocks.len());
            prop_assert!(!peers.contains_key(&facts.own_key));
            prop_assert!(peers.values().all(|spec| !spec.allowed_ips.is_empty()));
        }
        // Every peer is served, or it is said why not.
        for peer in peers.iter() {
            let is_served = peer.subnet.blocks().all(|it| plan.blocks.contains_key(&it));
            prop_assert!(is_served || plan.faults.contains_key(&peer.subnet));
        }
    }
}
