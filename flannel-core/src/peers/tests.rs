use proptest::prelude::*;

use super::*;
use crate::lease::LeaseAttrs;

fn config() -> NetworkConfig {
    r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap()
}

fn lease(key: &str, public_ip: &str) -> Lease {
    let attrs = LeaseAttrs { public_ip: public_ip.parse().ok(), ..LeaseAttrs::default() };
    Lease::new(key.parse().unwrap(), attrs)
}

fn peers() -> Peers {
    Peers::new(config(), lease("10.3.1.0-24", "192.0.2.1"))
}

fn keys(peers: &Peers) -> Vec<String> {
    peers.iter().map(|lease| lease.subnet.to_string()).collect()
}

#[test]
fn our_own_lease_is_not_a_peer() {
    let mut peers = peers();
    let leases = vec![lease("10.3.1.0-24", "192.0.2.1"), lease("10.3.2.0-24", "192.0.2.2")];
    let folded = peers.fold(LeaseEvent::reset(leases));
    assert_eq!(folded, FoldOutcome { peers_changed: true, own_differs: false });
    assert_eq!(keys(&peers), ["10.3.2.0-24"]);
}

#[test]
fn an_own_lease_that_differs_is_told() {
    let mut peers = peers();
    assert!(peers.fold(LeaseEvent::Remove("10.3.1.0-24".parse().unwrap())).own_differs);
    assert!(peers.fold(LeaseEvent::upsert(lease("10.3.1.0-24", "192.0.2.9"))).own_differs);
    assert!(peers.fold(LeaseEvent::Reset(vec![])).own_differs);
    let thief = lease("10.3.1.0-24", "192.0.2.1").held_by("thief".parse().unwrap());
    assert!(peers.fold(LeaseEvent::upsert(thief)).own_differs);
    assert!(!peers.fold(LeaseEvent::upsert(lease("10.3.1.0-24", "192.0.2.1"))).own_differs);
    // Not every store knows who holds a lease.
    let ours = lease("10.3.1.0-24", "192.0.2.1");
    let held = ours.clone().held_by("n1".parse().unwrap());
    peers.set_own(held.clone());
    for seen in [ours, held] {
        assert!(!peers.fold(LeaseEvent::upsert(seen.clone())).own_differs, "{seen:?}");
    }
}

#[test]
fn a_lease_over_our_subnet_is_told_once_however_it_comes() {
    let own = lease("10.3.1.0-24", "192.0.2.1");
    let over = lease("10.3.0.0-23", "192.0.2.2");
    let events: [fn(Lease, Lease) -> LeaseEvent; 2] =
        [|_, over| LeaseEvent::upsert(over), |own, over| LeaseEvent::reset(vec![own, over])];
    for event in events {
        let mut peers = peers();
        let event = || event(own.clone(), over.clone());
        assert!(peers.fold(event()).own_differs, "{:?}", event());
        assert!(!peers.fold(event()).own_differs, "it is known: {:?}", event());
        assert!(!peers.fold(LeaseEvent::upsert(lease("10.3.4.0-23", "192.0.2.3"))).own_differs);
    }
}

#[test]
fn an_event_that_repeats_what_is_known_changes_nothing() {
    let mut peers = peers();
    let event = LeaseEvent::upsert(lease("10.3.2.0-24", "192.0.2.2"));
    assert!(peers.fold(event.clone()).peers_changed);
    assert!(!peers.fold(event).peers_changed);
    assert!(
        !peers
            .fold(LeaseEvent::reset(vec![
                lease("10.3.1.0-24", "192.0.2.1"),
                lease("10.3.2.0-24", "192.0.2.2"),
            ]))
            .peers_changed
    );
}

#[test]
fn a_lease_that_would_harm_us_is_refused_by_name() {
    let mut peers = peers();
    for (key, address, reason) in [
        ("10.3.1.128-25", "192.0.2.2", "overlaps our own subnet"),
        ("10.3.0.0-16", "192.0.2.2", "overlaps our own subnet"),
        ("0.0.0.0-0", "192.0.2.2", "overlaps our own subnet"),
        ("10.4.2.0-24", "192.0.2.2", "outside of the network 10.3.0.0/16"),
        ("10.3.2.0-24", "127.0.0.1", "no node is reached at 127.0.0.1"),
        ("10.3.3.0-24", "224.0.0.1", "no node is reached at 224.0.0.1"),
        ("10.3.4.0-24", "255.255.255.255", "no node is reached at"),
        ("10.3.5.0-24", "192.0.2.1", "192.0.2.1 is our own address"),
    ] {
        let folded = peers.fold(LeaseEvent::upsert(lease(key, address)));
        assert!(!folded.peers_changed, "{key}");
        let fault = peers.refused().find(|p| p.peer == key.parse().unwrap()).unwrap().fault;
        assert!(fault.to_string().contains(reason), "{fault}");
    }
    assert!(peers.is_empty());
    // A refused lease that is mended becomes a peer.
    assert!(peers.fold(LeaseEvent::upsert(lease("10.3.2.0-24", "192.0.2.2"))).peers_changed);
    assert_eq!(peers.refused().len(), 7);
}

#[test]
fn a_lease_over_our_own_address_is_refused() {
    let config = r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/16"}"#;
    let mut own = lease("10.3.1.0-24&fd00:1::-64", "10.9.0.1");
    own.attrs.public_ipv6 = "fd00:9::1".parse().ok();
    let mut peers = Peers::new(config.parse().unwrap(), own);
    for (key, address) in [
        ("10.9.0.0-24&fd00:2::-64", "10.9.0.1"),
        ("10.9.0.0-30&fd00:3::-64", "10.9.0.1"),
        ("10.3.4.0-24&fd00:9::-64", "fd00:9::1"),
    ] {
        peers.fold(LeaseEvent::upsert(lease(key, "192.0.2.2")));
        let fault = peers.refused().find(|p| p.peer == key.parse().unwrap()).unwrap().fault;
        let expected = format!("its lease is refused: it contains our own address {address}");
        assert_eq!(fault.to_string(), expected);
    }
    peers.fold(LeaseEvent::upsert(lease("10.9.1.0-24&fd00:9:0:1::-64", "10.9.0.2")));
    assert_eq!(keys(&peers), ["10.9.1.0-24&fd00:9:0:1::-64"]);
}

#[test]
fn another_own_lease_makes_a_peer_of_what_was_refused() {
    let mut peers = peers();
    peers.fold(LeaseEvent::upsert(lease("10.3.2.0-24", "192.0.2.2")));
    peers.fold(LeaseEvent::upsert(lease("10.3.1.128-25", "192.0.2.3")));
    peers.fold(LeaseEvent::upsert(lease("10.3.1.0-24", "192.0.2.4")));
    peers.set_own(lease("10.3.2.0-24", "192.0.2.1"));
    assert_eq!(keys(&peers), ["10.3.1.0-24", "10.3.1.128-25"]);
    assert_eq!(peers.refused().len(), 0);
    peers.set_own(lease("10.3.1.0-24", "192.0.2.1"));
    assert_eq!(keys(&peers), ["10.3.2.0-24"]);
    peers.fold(LeaseEvent::Reset(vec![]));
    peers.set_own(lease("10.3.7.0-24", "192.0.2.1"));
    assert_eq!(keys(&peers), Vec::<String>::new());
}

#[test]
fn an_older_lease_of_this_node_is_not_a_peer() {
    let node: crate::NodeId = "n1".parse().unwrap();
    let mut peers = Peers::new(config(), lease("10.3.1.0-24", "192.0.2.1").held_by(node.clone()));
    peers.fold(LeaseEvent::upsert(lease("10.3.2.0-24", "192.0.2.1").held_by(node)));
    assert_eq!((peers.len(), peers.refused().len()), (0, 1));
}

#[test]
fn changes_are_told_until_they_are_too_many() {
    let mut peers = peers();
    let start = peers.revision().clone();
    assert_eq!(peers.changed_since(&start), Some(BTreeSet::new()));
    peers.fold(LeaseEvent::upsert(lease("10.3.2.0-24", "192.0.2.2")));
    let middle = peers.revision().clone();
    peers.fold(LeaseEvent::Remove("10.3.2.0-24".parse().unwrap()));
    peers.fold(LeaseEvent::upsert(lease("10.3.3.0-24", "192.0.2.3")));
    let subnets = |keys: &[&str]| Some(keys.iter().map(|key| key.parse().unwrap()).collect());
    assert_eq!(peers.changed_since(&middle), subnets(&["10.3.2.0-24", "10.3.3.0-24"]));
    let other = Peers::new(config(), lease("10.3.1.0-24", "192.0.2.1"));
    assert_eq!(peers.changed_since(other.revision()), None);
    for n in 0..REMEMBERED_CHANGES {
        peers.fold(LeaseEvent::upsert(lease("10.3.9.0-24", &format!("192.0.3.{}", n % 2))));
    }
    assert_eq!(peers.changed_since(&start), None);
}

#[test]
fn leases_are_shared_with_the_store_also_after_it_listed_them_again() {
    let mut peers = Peers::new(config(), lease("10.3.1.0-24", "192.0.2.1"));
    for _ in 0..2 {
        let of_store = Arc::new(lease("10.3.2.0-24", "192.0.2.2"));
        peers.fold(LeaseEvent::reset([of_store.clone()]));
        assert!(std::ptr::eq(peers.get(&of_store.subnet).unwrap(), &*of_store));
    }
}

/// What [`Peers`] has to equal: the last known lease of each subnet.
#[derive(Default)]
struct Model(BTreeMap<Subnet, Arc<Lease>>);

impl Model {
    fn fold(&mut self, event: &LeaseEvent) {
        match event {
            LeaseEvent::Remove(subnet) => drop(self.0.remove(subnet)),
            LeaseEvent::Reset(leases) => {
                self.0 = leases.iter().map(|lease| (lease.subnet, lease.clone())).collect();
            }
            LeaseEvent::Upsert(lease) => drop(self.0.insert(lease.subnet, lease.clone())),
        }
    }
}

fn events() -> impl Strategy<Value = LeaseEvent> {
    let any_lease = (0u8..12, 1u8..5).prop_map(|(subnet, host)| {
        lease(&format!("10.3.{subnet}.0-24"), &format!("192.0.2.{host}"))
    });
    prop_oneof![
        4 => any_lease.clone().prop_map(LeaseEvent::upsert),
        3 => any_lease.clone().prop_map(|lease| LeaseEvent::Remove(lease.subnet)),
        1 => proptest::collection::vec(any_lease, 0..10).prop_map(LeaseEvent::reset),
    ]
}

proptest! {
    #[test]
    fn peers_equal_the_last_known_leases_without_our_own(
        events in proptest::collection::vec(events(), 0..60),
    ) {
        let (mut peers, mut model) = (peers(), Model::default());
        let mut follower = BTreeMap::<Subnet, Lease>::new();
        for event in events {
            let before = peers.revision().clone();
            model.fold(&event);
            let folded = peers.fold(event);
            let changed = peers.changed_since(&before).unwrap();
            prop_assert_eq!(folded.peers_changed, !changed.is_empty());
            // Whoever looks only at what changed sees the same as who looks at all.
            for subnet in changed {
                match peers.get(&subnet) {
                    Some(lease) => drop(follower.insert(subnet, lease.clone())),
                    None => drop(follower.remove(&subnet)),
                }
            }
            let own = peers.own();
            let is_peer = |lease: &&Lease| {
                lease.subnet != own.subnet && lease.attrs.public_ip != own.attrs.public_ip
            };
            let expected: Vec<_> = model.0.values().map(Arc::as_ref).filter(is_peer).collect();
            prop_assert_eq!(peers.iter().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(follower.values().collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn what_one_of_two_networks_is_shown_says_who_is_on_standby_and_which_routes_it_has() {
    let mut peers = peers();
    for key in ["10.3.2.0-24", "10.3.3.0-24", "10.3.4.0-24"] {
        peers.fold(LeaseEvent::upsert(lease(key, "192.0.2.9")));
    }
    let [standby, served, hidden] =
        ["10.3.2.0-24", "10.3.3.0-24", "10.3.4.0-24"].map(|key| key.parse::<Subnet>().unwrap());
    let share = NetworkShare { standby: [standby].into(), scope: RouteScope::Peers };
    let own = lease("10.3.1.0-24", "192.0.2.7");
    let shared = peers
        .shared(own.clone(), share, |lease| (lease.subnet != hidden).then(|| Arc::clone(lease)));
    assert_eq!(
        (shared.own(), keys(&shared)),
        (&own, vec!["10.3.2.0-24".into(), "10.3.3.0-24".into()])
    );
    assert_eq!((shared.len(), shared.is_empty()), (2, false));
    assert_eq!((shared.is_standby(&standby), shared.is_standby(&served)), (true, false));
    assert_eq!(
        (shared.route_scope(), peers.route_scope()),
        (RouteScope::Peers, RouteScope::Network)
    );
    assert!(!peers.is_standby(&standby));
}
