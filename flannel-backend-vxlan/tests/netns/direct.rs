//! Direct routing: plain routes to who is on the link.

use std::{net::IpAddr, time::Duration};

use flannel_core::{
    RoutingMode, Transport,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::state::Route;
use flannel_testbed::probe;

use crate::support::{Kernel, world};

const DIRECT: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan","Directrouting":true}}"#;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn peers_on_the_link_get_plain_routes_in_both_families() {
    let world = world(DIRECT).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let eth0 = kernel.link("eth0").await.index;
    assert_eq!(kernel.way("10.244.2.0/24").await, (ip("192.0.2.2"), eth0));
    assert_eq!(kernel.way("fd00:10:244:2::/64").await, (ip("2001:db8::2"), eth0));
    for name in ["flannel.1", "flannel-v6.1"] {
        assert_eq!(kernel.forwarding(name).await, []);
        assert_eq!(kernel.neighbours(name).await, []);
    }
    assert!(world.reaches(0, 1).await);
    assert_eq!(nodes.sync(0).await.writes(), 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_peer_that_goes_behind_a_router_is_encapsulated_and_back_without_a_lost_packet() {
    let world = world(DIRECT).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let eth0 = kernel.link("eth0").await.index;
    let devices = [kernel.link("flannel.1").await.index, kernel.link("flannel-v6.1").await.index];
    let blocks = ["10.244.2.0/24", "fd00:10:244:2::/64"];
    let probes = probe::streams(world.pod(0), world.pod(1), 1000).unwrap();
    // Host 3 forwards, as a router does.
    let behind = [("192.0.2.2/32", "192.0.2.4"), ("2001:db8::2/128", "2001:db8::4")];
    let behind = behind
        .map(|(host, router)| Route::new(host.parse().unwrap(), 4).via_gateway(ip(router), eth0));
    for route in behind {
        kernel.0.apply_one(route.replace()).await.unwrap();
    }
    let tunneled = [(ip("10.244.2.0"), devices[0]), (ip("fd00:10:244:2::"), devices[1])];
    let mut ways = async || [kernel.way(blocks[0]).await, kernel.way(blocks[1]).await];
    assert!(nodes.repair(async || ways().await == tunneled).await);
    assert_eq!(nodes.sync(0).await.problems, []);
    assert_eq!(kernel.forwarding("flannel.1").await.len(), 1, "only that peer");
    assert_eq!(kernel.way("10.244.3.0/24").await, (ip("192.0.2.3"), eth0));
    assert!(world.reaches(0, 1).await && world.reaches(0, 2).await);
    for route in behind {
        kernel.0.apply_one(route.delete()).await.unwrap();
    }
    let direct = [(ip("192.0.2.2"), eth0), (ip("2001:db8::2"), eth0)];
    let mut ways = async || [kernel.way(blocks[0]).await, kernel.way(blocks[1]).await];
    assert!(nodes.repair(async || ways().await == direct).await);
    assert_eq!(kernel.forwarding("flannel.1").await, []);
    assert!(world.reaches(0, 1).await);
    let report = probes.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_transport_of_each_peer_and_family_is_told() {
    let world = world(DIRECT).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let eth0 = kernel.link("eth0").await.index;
    let behind = Route::new("192.0.2.2/32".parse().unwrap(), 4).via_gateway(ip("192.0.2.4"), eth0);
    kernel.0.apply_one(behind.replace()).await.unwrap();
    let device = kernel.link("flannel.1").await.index;
    let tunneled = (ip("10.244.2.0"), device);
    assert!(nodes.repair(async || kernel.way("10.244.2.0/24").await == tunneled).await);
    let (first, second) = (nodes.lease(1).subnet, nodes.lease(2).subnet);
    let (lease, network) = nodes.into_first();
    let way = |v4, v6| Some(Transport::new(Some(v4), Some(v6)));
    assert_eq!(network.transport(&first), way(RoutingMode::Encapsulated, RoutingMode::Direct));
    assert_eq!(network.transport(&second), way(RoutingMode::Direct, RoutingMode::Direct));
    assert_eq!(network.transport(&lease.subnet), None, "it is our own");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn direct_routes_are_back_after_the_link_was_down() {
    let world = world(DIRECT).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let eth0 = kernel.link("eth0").await.index;
    host.link_down().await.unwrap();
    nodes.sync(0).await;
    host.link_up().await.unwrap();
    let right = nodes.repair(async || {
        world.reaches(0, 1).await && kernel.way("10.244.2.0/24").await == (ip("192.0.2.2"), eth0)
    });
    assert!(right.await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn direct_routes_follow_a_new_network_card() {
    let world = world(DIRECT).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    host.delete_uplink().await.unwrap();
    host.create_uplink().await.unwrap();
    let mut kernel = Kernel::of(host);
    let eth0 = kernel.link("eth0").await.index;
    let right = nodes.repair(async || {
        world.reaches(0, 1).await
            && kernel.route("10.244.2.0/24").await.is_some()
            && kernel.way("10.244.2.0/24").await == (ip("192.0.2.2"), eth0)
    });
    assert!(right.await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_policy_rule_that_sends_packets_to_a_router_has_them_encapsulated() {
    let world = world(DIRECT).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let eth0 = kernel.link("eth0").await.index;
    let device = kernel.link("flannel.1").await.index;
    let mut route =
        Route::new("192.0.2.2/32".parse().unwrap(), 4).via_gateway(ip("192.0.2.4"), eth0);
    route.table = 100;
    kernel.0.apply_one(route.replace()).await.unwrap();
    // ip rule add to 192.0.2.2 lookup 100 priority 1000
    let mut rule = vec![2, 32, 0, 0, 100, 0, 0, 1, 0, 0, 0, 0];
    flannel_netlink::push_attribute(&mut rule, 1, &[192, 0, 2, 2]);
    flannel_netlink::push_attribute(&mut rule, 6, &1000_u32.to_ne_bytes());
    let add = flannel_netlink::Request::new(32, 0x600, &rule);
    kernel.0.apply_one(add).await.unwrap();
    let tunneled = (ip("10.244.2.0"), device);
    assert!(nodes.repair(async || kernel.way("10.244.2.0/24").await == tunneled).await);
    assert_eq!(kernel.way("10.244.3.0/24").await, (ip("192.0.2.3"), eth0));
    kernel.0.apply_one(flannel_netlink::Request::new(33, 0, &rule)).await.unwrap();
    let direct = (ip("192.0.2.2"), eth0);
    assert!(nodes.repair(async || kernel.way("10.244.2.0/24").await == direct).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn our_own_writes_are_no_drift() {
    let world = world(DIRECT).await;
    let nodes = Nodes::start(&world).await;
    let (_, mut network) = nodes.into_first();
    let quiet = Duration::from_millis(300);
    let drifted = tokio::time::timeout(quiet, network.drifted()).await;
    assert!(drifted.is_err(), "a drift without anybody's doing");
}
