//! Sessions with peers: they survive a restart, and a peer without one is named. What has none is not sent in the clear.

use std::os::unix::fs::PermissionsExt;

use flannel_core::{
    Backend, FaultKind, NetworkConfig, PeerFault,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{iface::lookup_route, wireguard::SecretKey};
use flannel_testbed::soon;

use crate::support::{DUAL, IPV4, ONE, backend, world, world_where};

const DEVICE: &str = "flannel-wg";

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn a_restart_keeps_devices_and_sessions() {
    let world = world(ONE).await;
    let mut nodes = Nodes::start(&world).await;
    assert!(world.reaches(0, 1).await);
    let sessions = async || {
        let peers = world.device(0, DEVICE).await.peers;
        let mut sessions: Vec<_> =
            peers.iter().map(|peer| (peer.config.clone(), peer.last_handshake)).collect();
        sessions.sort_by_key(|(config, _)| config.key);
        sessions
    };
    let (link, before) = (world.link(0, DEVICE).await, sessions().await);
    assert!(before.iter().any(|(_, last_handshake)| last_handshake.is_some()));
    nodes.restart(&world).await;
    assert_eq!(nodes.sync(0).await.writes(), 0);
    assert_eq!(world.link(0, DEVICE).await, link);
    assert_eq!(sessions().await, before);
}

/// As after a boot, before routers have given the network card its IPv6 address.
#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn without_an_ipv6_address_packets_of_that_family_still_go_into_the_device() {
    let world = world(DUAL).await;
    let nodes = Nodes::start(&world).await;
    let peers = nodes.peers(0, (0..4).map(|n| nodes.lease(n).clone()).collect::<Vec<_>>());
    let host = world.host(0);
    let addresses = host.addresses();
    host.set_addresses(addresses.iter().copied().filter(|it| it.is_ipv4())).await.unwrap();
    let (lease, before) = nodes.into_first();
    drop(before);
    let mut network = world.backend(0).start(&lease).await.unwrap();
    network.sync(&peers).await.unwrap();
    for (name, block) in [DEVICE, "flannel-wg-v6"].into_iter().zip(world.subnet(1).blocks()) {
        let way = lookup_route(&mut host.connect().unwrap(), block.ip()).await.unwrap();
        assert_eq!(way.link, world.link(0, name).await, "{name}");
        assert_eq!(world.peers(0, name).await.len(), 3, "{name}");
    }
    host.set_addresses(addresses).await.unwrap();
    let back = async {
        while !world.reaches(0, 1).await {
            network.sync(&peers).await.unwrap();
        }
    };
    soon(back).await;
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn a_peer_with_another_psk_is_named_after_30_seconds() {
    let network = |psk: u8| -> NetworkConfig {
        let psk = SecretKey::new([psk; 32]).reveal();
        let backend = format!(r#"{{"Type":"wireguard","PSK":"{}"}}"#, *psk);
        format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#).parse().unwrap()
    };
    let world = world_where(IPV4, move |host, _| {
        // Host 1 has another one.
        network(if host.ip().to_string() == "192.0.2.2" { 2 } else { 1 })
    })
    .await;
    let mut nodes = Nodes::start(&world).await;
    assert!(!world.reaches(0, 1).await);
    assert!(world.reaches(0, 2).await);
    let peers = nodes.peers(0, (0..4).map(|n| nodes.lease(n).clone()).collect::<Vec<_>>());
    let network = nodes.network(0);
    let mut problems = network.sync(&peers).await.unwrap().problems;
    assert_eq!(problems, [], "it may still answer");
    while problems.is_empty() {
        // The kernel keeps trying for 90 s.
        soon(network.drifted()).await.unwrap();
        problems = network.sync(&peers).await.unwrap().problems;
    }
    let [problem] = &*problems else { panic!("{problems:?}") };
    assert_eq!(problem.peer, world.subnet(1));
    assert_eq!(problem.fault, PeerFault::NoHandshake { seconds: 30, port: 51820 });
    assert_eq!(problem.fault.kind(), FaultKind::PeerUnresponsive);
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn the_private_key_is_in_its_file_and_in_the_kernel_and_shown_by_neither() {
    let world = world(IPV4).await;
    let keys = tempfile::tempdir().unwrap();
    let backend = backend(world.host(0), &world.config(), &keys);
    let attrs = backend.advertise(None).await.unwrap();
    let file = keys.path().join(world.host(0).ip().to_string());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let private = std::fs::read_to_string(&file).unwrap();
    let device = world.device(0, DEVICE).await;
    assert_eq!(*device.private_key.as_ref().unwrap().reveal(), private);
    let public = device.public_key.unwrap();
    let data = attrs.backend_data.unwrap();
    assert_eq!(data.as_str(), format!(r#"{{"PublicKey":"{public}","Port":51820}}"#));
    let shown = format!("{backend:?} {device:?}");
    assert!(shown.contains("SecretKey") && !shown.contains(&private), "{shown}");
    assert!(!shown.contains("SecretKey("), "{shown}");
}
