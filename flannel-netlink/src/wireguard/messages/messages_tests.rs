use std::net::{IpAddr, SocketAddrV4};

use proptest::prelude::*;

use super::*;

fn network() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(ip, len)| (IpAddr::from(ip), len)),
        (any::<[u8; 16]>(), 0..=128_u8).prop_map(|(ip, len)| (IpAddr::from(ip), len)),
    ]
    .prop_map(|(ip, len)| {
        let network = IpNetwork::new(ip, len).unwrap();
        IpNetwork::new(network.network(), len).unwrap()
    })
}

fn config() -> impl Strategy<Value = PeerConfig> {
    let secret = prop::option::of(any::<[u8; 32]>().prop_map(SecretKey::new));
    let address = prop_oneof![
        any::<SocketAddrV4>().prop_map(SocketAddr::V4),
        // Where it is a link-local address, the scope is a part of it.
        any::<SocketAddrV6>().prop_map(SocketAddr::V6),
    ];
    let allowed_ips = prop::collection::btree_set(network(), 0..4);
    (any::<[u8; 32]>(), secret, prop::option::of(address), any::<u16>(), allowed_ips).prop_map(
        |(key, preshared_key, endpoint, keepalive, allowed_ips)| PeerConfig {
            key: PublicKey::new(key),
            preshared_key,
            endpoint,
            keepalive,
            allowed_ips,
        },
    )
}

/// What the kernel would take out of messages that set peers: its own messages have the same form.
fn taken(batches: impl Iterator<Item = Batch>) -> Device {
    let mut device = Device::default();
    for batch in batches {
        fold(&mut device, &batch.request.message().unwrap());
    }
    device
}

proptest! {
    #[test]
    fn peers_are_read_as_they_were_set(configs in prop::collection::vec(config(), 0..20)) {
        let changes: Vec<_> = configs.iter().cloned().map(PeerChange::Set).collect();
        let device = taken(set_peers(30, 7, &changes));
        let read = device.peers.into_iter().map(|peer| peer.config);
        prop_assert_eq!(read.collect::<Vec<_>>(), configs);
    }

    #[test]
    fn any_message_is_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let request = Request::new(30, 0, &body);
        fold(&mut Device::default(), &request.message().unwrap());
        // What looks like peers, too.
        let mut nested = vec![0; HEADER];
        push_nested(&mut nested, WGDEVICE_A_PEERS, |out| {
            push_nested(out, 0, |out| {
                push_attribute(out, WGPEER_A_PUBLIC_KEY, &[1; 32]);
                out.extend_from_slice(&body);
            });
        });
        let request = Request::new(30, 0, &nested);
        fold(&mut Device::default(), &request.message().unwrap());
    }
}

#[test]
fn thousands_of_peers_are_a_few_messages_that_the_kernel_takes() {
    let change = |n: u16| {
        let [high, low] = n.to_be_bytes();
        PeerChange::Set(PeerConfig {
            key: PublicKey::new([n as u8; 32]),
            preshared_key: Some(SecretKey::new([1; 32])),
            endpoint: Some(([192, 0, high, low], 51820).into()),
            keepalive: 25,
            allowed_ips: [IpNetwork::new([10, high, low, 0].into(), 24).unwrap()].into(),
        })
    };
    let changes: Vec<_> = (0..5000).map(change).collect();
    let messages: Vec<_> = set_peers(30, 7, &changes).collect();
    let covered = messages.iter().flat_map(|batch| batch.changes.clone());
    assert_eq!(covered.collect::<Vec<_>>(), (0..5000).collect::<Vec<_>>());
    assert_eq!(messages.len(), 44);
    assert!(messages.iter().all(|batch| batch.request.bytes().len() < 20 << 10));
    assert_eq!(set_peers(30, 7, &changes[..1]).count(), 1);
}

#[test]
fn a_peer_with_thousands_of_addresses_is_several_messages() {
    let address = |n: u32| IpNetwork::new(IpAddr::from(n.to_be_bytes()), 32).unwrap();
    let config = PeerConfig {
        key: PublicKey::new([7; 32]),
        preshared_key: None,
        endpoint: None,
        keepalive: 0,
        allowed_ips: (0..5000).map(address).collect(),
    };
    let changes = [PeerChange::Set(config.clone()), PeerChange::Remove(PublicKey::new([8; 32]))];
    let messages: Vec<_> = set_peers(30, 7, &changes).collect();
    assert!(messages.iter().all(|batch| batch.request.bytes().len() < 30 << 10));
    let covered: Vec<_> = messages.iter().map(|batch| batch.changes.clone()).collect();
    assert!(covered[..covered.len() - 1].iter().all(|changes| *changes == (0..1)), "{covered:?}");
    assert_eq!(covered.last(), Some(&(0..2)));
    let flags = messages.iter().flat_map(|batch| {
        let message = batch.request.message().unwrap();
        let (_, attributes) = message.split(HEADER).unwrap();
        let peers = attributes.filter(|it| it.kind == WGDEVICE_A_PEERS).flat_map(|it| it.nested());
        let flags = peers.map(|it| it.nested().find(|it| it.kind == WGPEER_A_FLAGS).unwrap().u32());
        flags.collect::<Vec<_>>()
    });
    let flags: Vec<_> = flags.flatten().collect();
    assert_eq!(flags[0], WGPEER_F_REPLACE_ALLOWEDIPS);
    assert!(flags[1..20].iter().all(|flags| *flags == WGPEER_F_UPDATE_ONLY), "{flags:?}");
    let device = taken(messages.into_iter());
    assert_eq!(device.peers[0].config.allowed_ips, config.allowed_ips);
    assert_eq!(device.peers[1].config.key, PublicKey::new([8; 32]));
}
