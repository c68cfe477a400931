//! The alloc backend on a real kernel: the clauses of the contract that do not speak of packets.

use std::sync::Arc;

use flannel_backend::{Alloc, UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_core::{
    Backend, NetworkConfig,
    testing::network::{self, NetworkWorld, Nodes},
};
use flannel_testbed::Host;

const DUAL: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}"#;

fn alloc(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    Arc::new(Alloc::new(UplinkFinder::new(host.namespace(), config, &options).unwrap()))
}

async fn world() -> KernelWorld<impl Fn(&Host, &NetworkConfig) -> Arc<dyn Backend>> {
    KernelWorld::new(DUAL, alloc).await
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_second_sync_changes_nothing() {
    network::a_second_sync_changes_nothing(world().await).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn leaves_foreign_state_alone() {
    network::leaves_foreign_state_alone(world().await).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn teardown_changes_nothing() {
    let world = world().await;
    let before = world.snapshot(0).await;
    let (_, network) = Nodes::start(&world).await.into_first();
    network.teardown().await.unwrap();
    assert_eq!(world.snapshot(0).await, before);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn it_publishes_its_addresses_and_writes_nothing() {
    let world = world().await;
    let before = world.snapshot(0).await;
    let nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let attrs = &nodes.lease(0).attrs;
    assert_eq!((attrs.public_ip, attrs.public_ipv6), (host.ipv4(), host.ipv6()));
    assert_eq!((attrs.backend_type.as_ref(), &attrs.backend_data), ("", &None));
    assert_eq!(world.snapshot(0).await, before);
    assert_eq!(nodes.into_first().1.mtu(), 1500);
}
