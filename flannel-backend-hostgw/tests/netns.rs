//! Host-gw on a real kernel, with real packets.

use std::{sync::Arc, time::Duration};

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_hostgw::HostGw;
use flannel_core::{
    Backend, BackendError, Lease, LeaseAttrs, LeaseEvent, NetworkConfig, PeerFault, Peers,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{
    link_by_name, list_nexthops, list_routes,
    state::{IpFamily, Route},
};
use flannel_testbed::{Host, probe};

#[path = "netns/log_volume.rs"]
mod log_volume;

const IPV4: &str = r#"{"Network":"10.244.0.0/16"}"#;
const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}"#;
const DUAL: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}"#;

fn backend(host: &Host, config: &NetworkConfig, options: &UplinkOptions) -> HostGw {
    let finder = UplinkFinder::new(host.namespace(), config, options).unwrap();
    HostGw::new(config, finder).unwrap()
}

fn make(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    Arc::new(backend(host, config, &options))
}

type Make = fn(&Host, &NetworkConfig) -> Arc<dyn Backend>;

async fn world(config: &str) -> KernelWorld<Make> {
    KernelWorld::new(config, make as Make).await
}

mod ipv4 {
    flannel_core::network_conformance!(
        super::world(super::IPV4),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}

mod ipv6 {
    flannel_core::network_conformance!(
        super::world(super::IPV6),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}

mod dual {
    flannel_core::network_conformance!(
        super::world(super::DUAL),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_peer_that_is_not_on_the_link_is_named_with_the_kernels_words() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let attrs =
        LeaseAttrs { public_ip: Some([198, 51, 100, 7].into()), ..nodes.lease(1).attrs.clone() };
    let far = Lease::new("10.244.77.0-24".parse().unwrap(), attrs);
    let report = nodes.sync_other(0, 3, vec![far.clone()]).await;
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].peer, far.subnet);
    let PeerFault::Unreachable { reason, .. } = &report.problems[0].fault else {
        panic!("{report:?}");
    };
    assert!(reason.contains("gateway") || reason.contains("nreachable"), "{reason}");
    assert!(report.wants_retry());
    assert!(world.reaches(0, 1).await);
    // It is served as soon as there is a way.
    let host = world.testbed().host(0);
    host.set_addresses(["192.0.2.1/24", "198.51.100.1/24"].map(|it| it.parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(nodes.sync_other(0, 3, vec![far]).await.problems, []);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_route_with_a_wrong_gateway_is_put_right() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    // Host 2 would know the way otherwise.
    nodes.sync_other(2, 1, vec![]).await;
    host.add_route(world.blocks(1), world.testbed().host(2)).await.unwrap();
    assert!(!world.reaches(0, 1).await);
    assert!(nodes.repair(async || world.reaches(0, 1).await).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn routes_are_back_after_the_link_was_down() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    host.link_down().await.unwrap();
    nodes.sync(0).await;
    assert!(!world.reaches(0, 1).await);
    host.link_up().await.unwrap();
    assert!(nodes.repair(async || world.reaches(0, 1).await).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn routes_follow_a_new_network_card() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    host.delete_uplink().await.unwrap();
    host.create_uplink().await.unwrap();
    assert!(nodes.repair(async || world.reaches(0, 1).await).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_mtu_follows_the_link() {
    let world = world(IPV4).await;
    let nodes = Nodes::start(&world).await;
    let (lease, mut network) = nodes.into_first();
    assert_eq!(network.mtu(), 1500);
    world.testbed().host(0).set_mtu(1400).await.unwrap();
    let noticed = async {
        while network.mtu() != 1400 {
            network.drifted().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(1), noticed).await.expect("within a second");
    drop(lease);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_mtu_is_taken_up_by_routes_without_a_lost_packet() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let probes = probe::streams(world.pod(0), world.pod(1), 1000).unwrap();
    probes.flowing().await;
    let mut kernel = world.testbed().host(0).connect().unwrap();
    let backend = |options: &str| {
        let json =
            format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"host-gw",{options}}}}}"#);
        json.parse::<NetworkConfig>().unwrap().backend().clone()
    };
    for (options, mtu, told) in [
        (r#""MTU":1400"#, 1400, Some(1400)),
        (r#""MTU":9000"#, 1500, None),
        (r#""MTU":1300,"DNSServerList":[]"#, 1300, Some(1300)),
    ] {
        nodes.network(0).reconfigure(&backend(options)).unwrap();
        assert_eq!(nodes.network(0).mtu(), mtu);
        assert_eq!(nodes.sync(0).await.problems, []);
        for family in IpFamily::ALL {
            let routes = list_routes(&mut kernel, Route::MAIN, family).await.unwrap();
            let mut ours = routes.iter().filter(|it| it.protocol == flannel_backend::PROTOCOL);
            assert!(ours.all(|route| route.mtu == told), "{routes:?}");
        }
    }
    nodes.network(0).reconfigure(&backend(r#""MTU":1279"#)).unwrap_err();
    assert_eq!(nodes.network(0).mtu(), 1300);
    let report = probes.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_new_address_is_noticed_and_advertised() {
    let world = world(IPV4).await;
    let nodes = Nodes::start(&world).await;
    let (lease, mut network) = nodes.into_first();
    let host = world.testbed().host(0);
    host.set_addresses(["192.0.2.77/24".parse().unwrap()]).await.unwrap();
    let backend = world.backend(0);
    let noticed = async {
        loop {
            network.drifted().await.unwrap();
            let attrs = backend.advertise(Some(&lease)).await.unwrap();
            if attrs.public_ip == Some([192, 0, 2, 77].into()) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(1), noticed).await.expect("within a second");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_public_address_that_is_not_the_interfaces_is_refused_with_a_remedy() {
    let world = world(IPV4).await;
    let options = UplinkOptions {
        names: vec!["eth0".into()],
        public_ip: Some([203, 0, 113, 9].into()),
        ..UplinkOptions::default()
    };
    let host = world.testbed().host(0);
    let backend = backend(host, &world.config(), &options);
    let error = backend.advertise(None).await.unwrap_err();
    assert!(matches!(error, BackendError::Unsupported { .. }) && !error.is_retryable());
    assert!(error.to_string().contains("leave out the public address, or use vxlan"), "{error}");
    // An interface may have several.
    host.set_addresses(["192.0.2.1/24", "203.0.113.9/24"].map(|it| it.parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(backend.advertise(None).await.unwrap().public_ip, options.public_ip);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn without_an_uplink_the_error_lists_what_is_there() {
    let world = world(IPV4).await;
    let options = UplinkOptions { names: vec!["nic9".into()], ..UplinkOptions::default() };
    let backend = backend(world.testbed().host(0), &world.config(), &options);
    let error = backend.advertise(None).await.unwrap_err();
    assert!(error.is_retryable());
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("nic9") && cause.contains("eth0 [192.0.2.1/24"), "{cause}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_peer_at_the_broadcast_address_of_the_link_costs_only_itself() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let attrs =
        LeaseAttrs { public_ip: Some([192, 0, 2, 255].into()), ..nodes.lease(1).attrs.clone() };
    let bad = Lease::new("10.244.77.0-24".parse().unwrap(), attrs);
    let report = nodes.sync_other(0, 3, vec![bad.clone()]).await;
    assert_eq!((report.faults.len(), report.problems.len()), (0, 1), "{report:?}");
    assert_eq!(report.problems[0].peer, bad.subnet);
    let fault = &report.problems[0].fault;
    assert!(matches!(fault, PeerFault::Unreachable { .. }), "{fault:?}");
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_the_kernel_refuses_is_retried_also_if_the_peer_lacks_the_other_address() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let mut attrs = nodes.lease(1).attrs.clone();
    (attrs.public_ip, attrs.public_ipv6) = (Some([198, 51, 100, 7].into()), None);
    let half = Lease::new("10.244.77.0-24&fd00:10:244:77::-64".parse().unwrap(), attrs);
    let report = nodes.sync_other(0, 3, vec![half]).await;
    assert_eq!(report.problems.len(), 2, "{report:?}");
    assert!(report.wants_retry(), "{report:?}");
}

/// Two networks whose nexthop objects would have the same ids by their hash alone.
async fn colliding() -> [String; 2] {
    let namespace = flannel_netlink::Namespace::create().unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for n in 0..=255_u8 {
        for m in 0..=255_u8 {
            let network = format!("10.{n}.{m}.0/24");
            let networks = [network.parse().unwrap()];
            let ids = flannel_backend::nexthop_ids(&namespace, &networks, Route::MAIN).await;
            let first = *ids.unwrap().start();
            if let Some(other) = seen.insert(first, network.clone()) {
                return [other, network];
            }
        }
    }
    panic!("65,536 networks and no collision");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn two_networks_in_one_namespace_leave_each_other_alone() {
    let world = world(IPV4).await;
    let host = world.testbed().host(0);
    let mut networks = Vec::new();
    for network in colliding().await {
        let config = format!(r#"{{"Network":"{network}","SubnetLen":26}}"#);
        let config: NetworkConfig = config.parse().unwrap();
        let base: ipnetwork::Ipv4Network = network.parse().unwrap();
        let lease = |n: u8, attrs: &LeaseAttrs| {
            let [a, b, c, _] = base.ip().octets();
            Lease::new(format!("{a}.{b}.{c}.{}-26", n * 64).parse().unwrap(), attrs.clone())
        };
        let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
        let backend = backend(host, &config, &options);
        let attrs = backend.advertise(None).await.unwrap();
        let own = lease(1, &attrs);
        let mut network = backend.start(&own).await.unwrap();
        let peer = |n: u8| {
            let public_ip = Some([192, 0, 2, n + 1].into());
            lease(n + 1, &LeaseAttrs { public_ip, ..attrs.clone() })
        };
        let mut peers = Peers::new(config, own);
        peers.fold(LeaseEvent::reset(vec![peer(1), peer(2)]));
        let report = network.sync(&peers).await.unwrap();
        assert_eq!((report.added, report.removed, report.problems.len()), (4, 0, 0), "{report:?}");
        networks.push((network, peers));
    }
    // Each finds all as it left it, also if it lists the kernel anew.
    for (network, peers) in &mut networks {
        let quiet = tokio::time::timeout(Duration::from_millis(300), network.drifted()).await;
        assert!(quiet.is_err(), "a drift without anybody's doing");
        assert_eq!(network.sync(peers).await.unwrap().writes(), 0);
    }
    let before = host.snapshot().await.unwrap();
    let (second, _) = networks.pop().unwrap();
    second.teardown().await.unwrap();
    let gone = before.difference(&host.snapshot().await.unwrap());
    assert_eq!(gone.len(), 4, "only its own two routes and objects: {gone:#?}");
    let (mut first, peers) = networks.pop().unwrap();
    assert_eq!(first.sync(&peers).await.unwrap().writes(), 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_handed_over_are_flanneld_routes_and_no_packet_is_lost() {
    let world = world(DUAL).await;
    let nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let probes = probe::streams(world.pod(0), world.pod(1), 1000).unwrap();
    probes.flowing().await;
    let (_, network) = nodes.into_first();
    network.hand_over().await.unwrap();
    let report = probes.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    let mut kernel = host.connect().unwrap();
    assert_eq!(list_nexthops(&mut kernel).await.unwrap(), []);
    let eth0 = link_by_name(&mut kernel, "eth0").await.unwrap().unwrap().index;
    for (family, block, gateway) in [
        (IpFamily::V4, "10.244.2.0/24", "192.0.2.2"),
        (IpFamily::V6, "fd00:10:244:2::/64", "2001:db8::2"),
    ] {
        let routes = list_routes(&mut kernel, Route::MAIN, family).await.unwrap();
        let expected = Route::new(block.parse().unwrap(), Route::BOOT);
        assert!(
            routes.contains(&expected.via_gateway(gateway.parse().unwrap(), eth0)),
            "{routes:?}"
        );
    }
}
