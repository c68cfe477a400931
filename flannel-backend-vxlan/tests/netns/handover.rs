//! The way back to flanneld, and what flanneld has left.

use flannel_core::{
    Peers,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{
    list_routes,
    state::{IpFamily, Route, Via},
};
use flannel_testbed::probe;

use crate::support::{DUAL, Kernel, world};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_handed_over_is_as_flanneld_makes_it_and_no_packet_is_lost() {
    let world = world(DUAL).await;
    let nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let devices = [kernel.link("flannel.1").await, kernel.link("flannel-v6.1").await];
    let probes = probe::streams(world.pod(0), world.pod(1), 1000).unwrap();
    probes.flowing().await;
    let (_, network) = nodes.into_first();
    network.hand_over().await.unwrap();
    let report = probes.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    assert_eq!(kernel.nexthops().await, []);
    for (family, device, blocks) in [
        (IpFamily::V4, &devices[0], ["10.244.2.0/24", "10.244.3.0/24", "10.244.4.0/24"]),
        (
            IpFamily::V6,
            &devices[1],
            ["fd00:10:244:2::/64", "fd00:10:244:3::/64", "fd00:10:244:4::/64"],
        ),
    ] {
        let routes = list_routes(&mut kernel.0, Route::MAIN, family).await.unwrap();
        for block in blocks {
            let block: ipnetwork::IpNetwork = block.parse().unwrap();
            let mut expected = Route::new(block, Route::BOOT).via_gateway(block.ip(), device.index);
            expected.onlink = true;
            assert!(routes.contains(&expected), "{expected} is not among {routes:?}");
        }
        assert!(routes.iter().all(|route| !matches!(route.via, Via::Nexthop(_))), "{routes:?}");
        assert_eq!(kernel.forwarding(&device.name).await.len(), 3);
        assert_eq!(kernel.neighbours(&device.name).await.len(), 3);
        assert_eq!(&kernel.link(&device.name).await, device);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn routes_that_flanneld_made_are_taken_over_without_loss_and_stale_ones_go() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let probes = probe::streams(world.pod(0), world.pod(1), 1000).unwrap();
    probes.flowing().await;
    // There, and here again, with one peer gone meanwhile.
    let lease = nodes.lease(0).clone();
    let known = nodes.lease(1).clone();
    nodes.hand_over(0).await;
    let backend = world.backend(0);
    let mut network = backend.start(&lease).await.unwrap();
    let mut peers = Peers::new(world.config(), lease);
    peers.fold(flannel_core::LeaseEvent::reset(vec![known]));
    let report = network.sync(&peers).await.unwrap();
    assert_eq!((report.faults.len(), report.problems.len()), (0, 0), "{report:?}");
    let report = probes.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    let mut kernel = Kernel::of(world.testbed().host(0));
    for block in ["10.244.2.0/24", "fd00:10:244:2::/64"] {
        let route = kernel.route(block).await.unwrap();
        assert!(matches!(route.via, Via::Nexthop(_)), "{route}");
    }
    for block in ["10.244.3.0/24", "fd00:10:244:3::/64"] {
        assert_eq!(kernel.route(block).await, None);
    }
}
