use std::net::SocketAddr;

use flannel_netlink::{
    Connection, Ensured, LinkSpec, LinkSpecKind, Namespace, ensure_link,
    state::Link,
    wireguard::{PeerChange, PeerConfig, PublicKey, SecretKey, Wireguard},
};
use ipnetwork::IpNetwork;

async fn device() -> (Connection, Wireguard, Link) {
    let namespace = Namespace::create().unwrap();
    let mut connection = Connection::open(&namespace).unwrap();
    let spec = LinkSpec::new("wg0", LinkSpecKind::Wireguard);
    let (link, ensured) = ensure_link(&mut connection, &spec).await.unwrap();
    assert_eq!(ensured, Ensured::Created);
    (connection, Wireguard::open(&namespace).unwrap(), link)
}

fn peer(n: u16) -> PeerConfig {
    let [high, low] = n.to_be_bytes();
    let mut key = [7; 32];
    (key[0], key[1]) = (high, low);
    PeerConfig {
        key: PublicKey::new(key),
        preshared_key: Some(SecretKey::new([1; 32])),
        endpoint: Some(([192, 0, high, low], 51820).into()),
        keepalive: 25,
        allowed_ips: [IpNetwork::new([10, high, low, 0].into(), 24).unwrap()].into(),
    }
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn a_device_is_what_was_set() {
    let (mut connection, mut wireguard, link) = device().await;
    // A key that Curve25519 alters.
    let key = SecretKey::new([0xff; 32]);
    wireguard.set(link.index, &key, 51820).await.unwrap();
    let v6: SocketAddr = "[2001:db8::1]:4000".parse().unwrap();
    let networks = ["10.1.0.0/16", "fd00:1::/48", "192.0.2.7/32"].map(|it| it.parse().unwrap());
    let second = PeerConfig {
        preshared_key: None,
        endpoint: Some(v6),
        keepalive: 0,
        allowed_ips: networks.into(),
        ..peer(2)
    };
    let configs = [peer(1), second.clone()];
    let changes = configs.clone().map(PeerChange::Set);
    assert_eq!(wireguard.set_peers(link.index, &changes).await, [Ok(()), Ok(())]);
    let device = wireguard.get(link.index).await.unwrap();
    assert_eq!((device.private_key, device.listen_port), (Some(key.clamped()), 51820));
    assert!(device.public_key.is_some());
    let actual: Vec<_> = device.peers.iter().map(|peer| peer.config.clone()).collect();
    assert_eq!(actual, configs);
    assert!(device.peers.iter().all(|peer| peer.last_handshake.is_none()));

    // Its endpoint stays, and the network that another peer had is its own from now on.
    let taken = PeerConfig { endpoint: None, allowed_ips: [networks[0]].into(), ..peer(1) };
    let changes = [PeerChange::Set(taken), PeerChange::Remove(PublicKey::new([9; 32]))];
    assert_eq!(wireguard.set_peers(link.index, &changes).await, [Ok(()), Ok(())]);
    let peers = wireguard.get(link.index).await.unwrap().peers;
    assert_eq!(peers[0].config.endpoint, peer(1).endpoint);
    assert_eq!(peers[1].config.allowed_ips, networks[1..].iter().copied().collect());

    let remove = [PeerChange::Remove(peer(1).key)];
    assert_eq!(wireguard.set_peers(link.index, &remove).await, [Ok(())]);
    let peers = wireguard.get(link.index).await.unwrap().peers;
    assert_eq!(peers.iter().map(|peer| peer.config.key).collect::<Vec<_>>(), [second.key]);

    let spec = LinkSpec::new("wg0", LinkSpecKind::Wireguard);
    let (again, ensured) = ensure_link(&mut connection, &spec).await.unwrap();
    assert_eq!((again.index, ensured), (link.index, Ensured::Adopted));
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn thousands_of_peers_and_thousands_of_networks_of_one_are_set_and_read() {
    let (_, mut wireguard, link) = device().await;
    let many = |n: u32| IpNetwork::new((0x0b00_0000 + n).to_be_bytes().into(), 32).unwrap();
    let mut configs: Vec<_> = (1..5000).map(peer).collect();
    configs.push(PeerConfig { allowed_ips: (0..5000).map(many).collect(), ..peer(5000) });
    let changes: Vec<_> = configs.iter().cloned().map(PeerChange::Set).collect();
    let results = wireguard.set_peers(link.index, &changes).await;
    assert!(results.iter().all(Result::is_ok));
    let device = wireguard.get(link.index).await.unwrap();
    assert!(device.peers.iter().map(|peer| &peer.config).eq(&configs));
    let remove: Vec<_> = configs.iter().map(|peer| PeerChange::Remove(peer.key)).collect();
    assert!(wireguard.set_peers(link.index, &remove).await.iter().all(Result::is_ok));
    assert_eq!(wireguard.get(link.index).await.unwrap().peers, []);
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn without_a_device_each_change_fails_by_itself() {
    let (_, mut wireguard, _) = device().await;
    let nowhere = u32::from(u16::MAX);
    let error = wireguard.get(nowhere).await.unwrap_err();
    assert!(error.not_found(), "{error}");
    let changes: Vec<_> = (1..1000).map(peer).map(PeerChange::Set).collect();
    let results = wireguard.set_peers(nowhere, &changes).await;
    assert_eq!(results.len(), changes.len());
    assert!(results.iter().all(|it| it.as_ref().is_err_and(|error| error.not_found())));
}
