//! What peers publish: changes, and things that no honest peer says.

use flannel_core::{
    Lease, LeaseAttrs, LeaseEvent, PeerFault, SyncReport,
    testing::network::{NetworkWorld, Nodes},
};

use flannel_netlink::state::Route;
use tokio::time::timeout;

use crate::support::{DUAL, IPV4, Kernel, REPAIR, changed, data, mac, mac_of, world};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_peer_with_another_mac_leaves_no_stale_entry() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let other = changed(nodes.lease(1), |attrs| attrs.backend_data = data("0e:66:66:66:66:66"));
    nodes.sync_other(0, 1, vec![other]).await;
    let macs = async |kernel: &mut Kernel| {
        let entries = kernel.forwarding("flannel.1").await;
        let mut macs: Vec<_> = entries.into_iter().map(|entry| entry.mac).collect();
        macs.sort();
        macs
    };
    let mut expected = vec![
        mac("0e:66:66:66:66:66"),
        mac_of(&nodes.lease(2).attrs),
        mac_of(&nodes.lease(3).attrs),
    ];
    expected.sort();
    assert_eq!(macs(&mut kernel).await, expected);
    assert!(!world.reaches(0, 1).await, "the peer drops what is not for it");
    nodes.sync(0).await;
    assert!(world.reaches(0, 1).await);
    assert_eq!(macs(&mut kernel).await.len(), 3);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_peer_with_another_address_is_followed() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let peer = world.testbed().host(1);
    peer.set_addresses(["192.0.2.77/24".parse().unwrap()]).await.unwrap();
    assert!(!world.reaches(0, 1).await);
    // The peer's own device follows by its own sync, which this test leaves out: packets to it go to any of its addresses.
    let moved = changed(nodes.lease(1), |attrs| attrs.public_ip = Some([192, 0, 2, 77].into()));
    nodes.sync_other(0, 1, vec![moved]).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let entries = kernel.forwarding("flannel.1").await;
    assert_eq!(entries.len(), 3);
    let remote = |ip: &str| entries.iter().any(|it| it.remote == Some(ip.parse().unwrap()));
    assert!(remote("192.0.2.77") && !remote("192.0.2.2"), "{entries:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn hostile_leases_are_named_and_cost_nobody_else() {
    type Spoil = fn(&mut LeaseAttrs);
    let spoils: [(Spoil, &str); 8] = [
        (|attrs| attrs.backend_data = None, "it has no VtepMAC"),
        (|attrs| attrs.backend_data = data(""), "VtepMAC"),
        (|attrs| attrs.backend_data = data("ff:ff:ff:ff:ff:ff"), "one station"),
        (|attrs| attrs.backend_data = data("00:00:00:00:00:00"), "one station"),
        (|attrs| attrs.public_ip = Some([192, 0, 2, 1].into()), "our own address"),
        (|attrs| attrs.public_ip = Some([10, 244, 77, 1].into()), "its own subnet"),
        (|attrs| attrs.backend_type = "VXLAN".into(), "another"),
        (|attrs| attrs.backend_type = "".into(), "another"),
    ];
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let before = world.snapshot(0).await;
    let own = nodes.lease(0).attrs.clone();
    for (n, (spoil, words)) in spoils.iter().enumerate() {
        let mut attrs = LeaseAttrs {
            public_ip: Some([192, 0, 2, 99].into()),
            backend_data: data("0e:00:00:00:00:99"),
            ..own.clone()
        };
        spoil(&mut attrs);
        let bad = Lease::new("10.244.77.0-24".parse().unwrap(), attrs);
        let all: Vec<_> = [bad].into_iter().chain([nodes.lease(3).clone()]).collect();
        // Some are kept from every backend, the others are for this one to see through.
        let refused: Vec<_> = nodes.peers(0, all.clone()).refused().collect();
        let report = nodes.sync_other(0, 3, all).await;
        let problems = [refused, report.problems].concat();
        assert_eq!(problems.len(), 1, "{n}: {problems:?}");
        let fault = problems[0].fault.to_string();
        assert!(
            fault.contains(words) || *words == "another" && fault.contains("backend"),
            "{fault}"
        );
        assert_eq!(world.snapshot(0).await, before, "{words}");
    }
    // Our own Ethernet address.
    let thief = LeaseAttrs { public_ip: Some([192, 0, 2, 99].into()), ..own };
    let thief = Lease::new("10.244.77.0-24".parse().unwrap(), thief);
    let last = nodes.lease(3).clone();
    let report = nodes.sync_other(0, 3, vec![thief, last]).await;
    assert!(report.problems[0].fault.to_string().ends_with("is ours"), "{report:?}");
    assert_eq!(world.snapshot(0).await, before);
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_lease_over_the_link_of_the_hosts_does_not_cut_them_off() {
    let world = world(IPV4).await;
    // Hosts inside of the network: nobody should do that, and some do.
    for n in 0..4 {
        let address = format!("10.244.200.{}/24", n + 1);
        world.testbed().host(n).set_addresses([address.parse().unwrap()]).await.unwrap();
    }
    let mut nodes = Nodes::start(&world).await;
    assert!(world.reaches(0, 1).await);
    let before = world.snapshot(0).await;
    let thief = changed(nodes.lease(3), |attrs| {
        attrs.public_ip = Some([203, 0, 113, 9].into());
        attrs.backend_data = data("0e:00:00:00:00:99");
    });
    let thief = Lease::new("10.244.200.0-24".parse().unwrap(), thief.attrs);
    let last = nodes.lease(3).clone();
    nodes.sync_other(0, 3, vec![thief, last]).await;
    assert_eq!(world.snapshot(0).await, before);
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn of_two_peers_with_one_mac_the_first_is_served_and_the_other_named() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let before = world.snapshot(0).await;
    let thief = changed(nodes.lease(3), |attrs| {
        attrs.public_ip = Some([192, 0, 2, 99].into());
    });
    let thief = Lease::new("10.244.77.0-24".parse().unwrap(), thief.attrs);
    let last = nodes.lease(3).clone();
    let report = nodes.sync_other(0, 3, vec![thief.clone(), last]).await;
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].peer, thief.subnet);
    let fault = report.problems[0].fault.to_string();
    assert!(fault.contains("is that of the peer 10.244.4.0"), "{fault}");
    assert_eq!(world.snapshot(0).await, before);
    assert!(world.reaches(0, 3).await);
    // When the first has left, the other is served without having changed.
    let mut peers = nodes.peers(0, [thief, nodes.lease(3).clone()]);
    let first = nodes.lease(3).subnet;
    let (_, mut network) = nodes.into_first();
    assert_eq!(network.sync(&peers).await.unwrap().problems.len(), 1);
    peers.fold(LeaseEvent::Remove(first));
    assert_eq!(network.sync(&peers).await.unwrap().problems, []);
    let entries = Kernel::of(world.testbed().host(0)).forwarding("flannel.1").await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].remote, Some([192, 0, 2, 99].into()));
}

/// Syncs host 0 whenever it drifts, until a report is as wanted.
async fn sync_until(nodes: &mut Nodes, wanted: impl Fn(&SyncReport) -> bool) -> SyncReport {
    let synced = async {
        loop {
            nodes.network(0).drifted().await.unwrap();
            let report = nodes.sync(0).await;
            if wanted(&report) {
                return report;
            }
        }
    };
    timeout(10 * REPAIR, synced).await.expect("told in time")
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_route_of_somebody_else_that_the_kernel_takes_instead_is_a_fault_of_its_peer() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let eth0 = kernel.link("eth0").await.index;
    let theirs = |block: &str, gateway: &str, metric| {
        let route = Route::new(block.parse().unwrap(), Route::BOOT);
        Route { metric, ..route.via_gateway(gateway.parse().unwrap(), eth0) }
    };
    // Of IPv4 none has a lower metric than ours.
    let behind = theirs("10.244.2.0/24", "192.0.2.99", 100);
    let before = theirs("fd00:10:244:2::/64", "2001:db8::99", 512);
    for route in [behind, before] {
        kernel.0.apply_one(route.replace()).await.unwrap();
    }
    let report = sync_until(&mut nodes, |report| !report.problems.is_empty()).await;
    let route =
        format!("route fd00:10:244:2::/64 via 2001:db8::99 on device {eth0} with metric 512");
    let found: Vec<_> = report.problems.iter().map(|it| (it.peer, it.fault.clone())).collect();
    assert_eq!(found, [(world.subnet(1), PeerFault::Overridden { route })]);
    assert!(!world.reaches(0, 1).await, "it is as bad as the report says");
    assert!(world.reaches(0, 2).await);
    let report = nodes.sync(0).await;
    assert_eq!((report.writes(), report.problems.len()), (0, 1), "theirs is left alone");
    kernel.0.apply_one(before.delete()).await.unwrap();
    sync_until(&mut nodes, |report| report.problems.is_empty()).await;
    // A part of a subnet, whatever the metric; it is told of once.
    let parts =
        [theirs("10.244.2.0/25", "192.0.2.99", 0), theirs("10.244.2.0/26", "192.0.2.99", 0)];
    for part in parts {
        kernel.0.apply_one(part.replace()).await.unwrap();
    }
    let report = sync_until(&mut nodes, |report| !report.problems.is_empty()).await;
    assert!(report.problems.iter().all(|it| it.peer == world.subnet(1)), "{report:?}");
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(!world.reaches(0, 1).await, "it is as bad as the report says");
    for part in parts {
        kernel.0.apply_one(part.delete()).await.unwrap();
    }
    sync_until(&mut nodes, |report| report.problems.is_empty()).await;
    assert!(world.reaches(0, 1).await);
}
