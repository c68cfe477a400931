//! What others do to devices and peers is undone.

use std::collections::BTreeSet;

use flannel_core::{
    Lease, LeaseAttrs,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{
    delete_link,
    wireguard::{PeerChange, PeerConfig, PublicKey, SecretKey},
};

use crate::support::{DUAL, IPV4, world};

const DEVICE: &str = "flannel-wg";

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn changed_peers_are_repaired_within_a_second() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    for name in [DEVICE, "flannel-wg-v6"] {
        let before = world.peers(0, name).await;
        assert_eq!(before.len(), 3);
        let altered = |change: fn(&mut PeerConfig)| {
            let mut config = before[1].clone();
            change(&mut config);
            PeerChange::Set(config)
        };
        for change in [
            PeerChange::Remove(before[0].key),
            altered(|it| it.key = PublicKey::new([9; 32])),
            altered(|it| it.allowed_ips = ["0.0.0.0/0".parse().unwrap()].into()),
            altered(|it| it.preshared_key = Some(SecretKey::new([9; 32]))),
            altered(|it| it.keepalive = 9),
        ] {
            world.meddle(0, name, change.clone()).await;
            assert_ne!(world.peers(0, name).await, before, "{change}");
            let repaired = nodes.repair(async || world.peers(0, name).await == before).await;
            assert!(repaired, "{change}");
        }
    }
    for to in 1..4 {
        assert!(world.reaches(0, to).await, "host {to}");
    }
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn what_was_repaired_is_in_the_report() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let key = world.peers(0, DEVICE).await[0].key;
    world.meddle(0, DEVICE, PeerChange::Remove(key)).await;
    nodes.network(0).drifted().await.unwrap();
    let report = nodes.sync(0).await;
    assert_eq!((report.added, report.drifted, report.writes()), (1, 1, 1));
    assert_eq!(report.repaired.examples, [format!("the peer {key} of {DEVICE}")]);
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn another_key_or_port_of_the_device_is_repaired() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let before = world.device(0, DEVICE).await;
    let link = world.link(0, DEVICE).await;
    world.kernel(0).set(link, &SecretKey::new([9; 32]), 999).await.unwrap();
    let is_right = async || {
        let now = world.device(0, DEVICE).await;
        (now.public_key, now.listen_port) == (before.public_key, 51820)
    };
    assert!(!is_right().await);
    assert!(nodes.repair(is_right).await);
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn a_deleted_device_is_back_within_a_second_with_all_peers() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let keys = |peers: Vec<PeerConfig>| peers.iter().map(|it| it.key).collect::<BTreeSet<_>>();
    for name in [DEVICE, "flannel-wg-v6"] {
        let (before, link) = (keys(world.peers(0, name).await), world.link(0, name).await);
        delete_link(&mut world.host(0).connect().unwrap(), link).await.unwrap();
        let is_back = async || {
            world.find(0, name).await.is_some() && keys(world.peers(0, name).await) == before
        };
        assert!(nodes.repair(is_back).await, "{name}");
    }
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn a_peer_that_roams_is_followed_until_its_lease_changes() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let block = world.subnet(1).blocks().next().unwrap();
    let peer = async || {
        let peers = world.peers(0, DEVICE).await;
        peers.into_iter().find(|peer| peer.allowed_ips.contains(&block)).unwrap()
    };
    let elsewhere = Some(([192, 0, 2, 99], 7).into());
    // As the kernel does when packets come from there.
    let roamed = PeerConfig { endpoint: elsewhere, ..peer().await };
    world.meddle(0, DEVICE, PeerChange::Set(roamed)).await;
    assert_eq!(nodes.sync(0).await.writes(), 0);
    assert_eq!(peer().await.endpoint, elsewhere);
    let public_ip = Some([192, 0, 2, 77].into());
    let attrs = LeaseAttrs { public_ip, ..nodes.lease(1).attrs.clone() };
    let moved = Lease::new(nodes.lease(1).subnet, attrs);
    assert_eq!(nodes.sync_other(0, 1, vec![moved]).await.writes(), 1);
    assert_eq!(peer().await.endpoint, Some(([192, 0, 2, 77], 51820).into()));
}
