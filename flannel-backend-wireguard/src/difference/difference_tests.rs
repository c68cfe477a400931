use flannel_netlink::wireguard::SecretKey;
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(10_000);

pub(crate) fn peer(n: u8, sent: u64, last_handshake: Option<Duration>) -> Peer {
    Peer { config: spec(n).config(key(n), Some(endpoint(n))), last_handshake, sent }
}

fn endpoint(n: u8) -> SocketAddr {
    ([192, 0, 2, n], 51820).into()
}

fn block(n: u8) -> IpNetwork {
    IpNetwork::new([10, 3, n, 0].into(), 24).unwrap()
}

fn spec(n: u8) -> PeerSpec {
    PeerSpec {
        endpoint: endpoint(n),
        allowed_ips: [block(n)].into(),
        preshared_key: None,
        keepalive: 0,
    }
}

fn key(n: u8) -> PublicKey {
    PublicKey::new([n; 32])
}

/// A hundred peers, as they should be and as they are.
fn many() -> (BTreeMap<PublicKey, PeerSpec>, Vec<Peer>) {
    let wanted = (0..100).map(|n| (key(n), spec(n))).collect();
    (wanted, (0..100).map(|n| peer(n, 0, None)).collect())
}

/// All peers were set by these leases.
fn announced(wanted: &BTreeMap<PublicKey, PeerSpec>) -> impl Fn(&PublicKey) -> Option<SocketAddr> {
    |key| Some(wanted.get(key)?.endpoint)
}

#[test]
fn nothing_is_written_if_nothing_changed_and_one_peer_if_one_did() {
    let (before, actual) = many();
    let changes = |wanted: &BTreeMap<_, _>| difference(wanted, &actual, announced(&before), NOW);
    assert_eq!(changes(&before), []);
    let mut wanted = before.clone();
    wanted.get_mut(&key(7)).unwrap().endpoint = endpoint(200);
    let found = changes(&wanted);
    let [PeerChange::Set(config)] = &*found else { panic!("{found:?}") };
    assert_eq!((config.key, config.endpoint), (key(7), Some(endpoint(200))));
    wanted.remove(&key(7));
    assert_eq!(changes(&wanted), [PeerChange::Remove(key(7))]);
}

#[test]
fn what_somebody_else_changed_is_repaired_by_setting_that_peer_alone() {
    let (wanted, actual) = many();
    let changes: [fn(&mut PeerConfig); 4] = [
        |peer| peer.keepalive = 25,
        |peer| peer.allowed_ips.extend([IpNetwork::new([0; 4].into(), 0).unwrap()]),
        |peer| peer.preshared_key = Some(SecretKey::new([1; 32])),
        |peer| peer.endpoint = None,
    ];
    for change in changes {
        let mut actual = actual.clone();
        change(&mut actual[7].config);
        let changes = difference(&wanted, &actual, announced(&wanted), NOW);
        let [PeerChange::Set(config)] = &*changes else { panic!("{changes:?}") };
        assert_eq!((config.key, &config.allowed_ips), (key(7), &[block(7)].into()));
    }
    let mut foreign = actual.clone();
    foreign.push(peer(200, 0, None));
    foreign.retain(|peer| peer.config.key != key(3));
    let changes = difference(&wanted, &foreign, announced(&wanted), NOW);
    let keys: BTreeSet<_> = changes.iter().map(PeerChange::key).collect();
    assert_eq!(keys, [key(3), key(200)].into());
}

#[test]
fn roaming_is_left_to_the_kernel_until_the_lease_changes() {
    let wanted: BTreeMap<_, _> = [(key(7), spec(7))].into();
    let written = |last_handshake, announced: Option<u8>| {
        let mut roamed = peer(7, 9, last_handshake);
        roamed.config.endpoint = Some(endpoint(99));
        match &*difference(&wanted, &[roamed], |_| announced.map(endpoint), NOW) {
            [PeerChange::Set(PeerConfig { endpoint, .. })] => *endpoint,
            [] => None,
            changes => panic!("{changes:?}"),
        }
    };
    let recent = Some(NOW - Duration::from_secs(179));
    let late = Some(NOW - Duration::from_secs(180));
    assert_eq!(written(None, Some(7)), None, "the lease is the same");
    assert_eq!(written(recent, Some(8)), Some(endpoint(7)), "the lease is another");
    assert_eq!(written(recent, None), None, "after a restart, of a peer that answers");
    assert_eq!(written(late, None), Some(endpoint(7)));
    assert_eq!(written(None, None), Some(endpoint(7)));
}

/// Does what a kernel does: a block belongs to the peer that it was given to last.
fn apply(actual: &mut Vec<Peer>, changes: Vec<PeerChange>) {
    for change in changes {
        let before = actual.iter().position(|peer| peer.config.key == change.key());
        let before = before.map(|at| actual.remove(at));
        let PeerChange::Set(mut config) = change else { continue };
        for other in &mut *actual {
            other.config.allowed_ips.retain(|it| !config.allowed_ips.contains(it));
        }
        config.endpoint = config.endpoint.or_else(|| before?.config.endpoint);
        actual.push(Peer { config, last_handshake: None, sent: 0 });
    }
}

/// Peers with some of a few blocks, each of one of them.
fn peers() -> impl Strategy<Value = BTreeMap<PublicKey, PeerSpec>> {
    prop::collection::vec((0..8_u8, 1..6_u8, 0..2_u16), 0..12).prop_map(|blocks| {
        let mut peers: BTreeMap<PublicKey, PeerSpec> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (n, owner, keepalive) in blocks {
            if taken.insert(n) {
                let peer = peers
                    .entry(key(owner))
                    .or_insert_with(|| PeerSpec { allowed_ips: BTreeSet::new(), ..spec(owner) });
                peer.allowed_ips.insert(block(n));
                peer.keepalive = keepalive;
            }
        }
        peers
    })
}

proptest! {
    #[test]
    fn the_changes_lead_from_anything_to_what_is_wanted(before in peers(), wanted in peers()) {
        let mut actual = Vec::new();
        apply(&mut actual, difference(&before, &[], |_| None, NOW));
        let changes = difference(&wanted, &actual, announced(&before), NOW);
        let same = |key: &PublicKey| before.contains_key(key) && before.get(key) == wanted.get(key);
        prop_assert!(changes.iter().all(|change| !same(&change.key())));
        apply(&mut actual, changes);
        prop_assert_eq!(difference(&wanted, &actual, announced(&wanted), NOW), []);
        prop_assert_eq!(actual.len(), wanted.len());
    }
}
