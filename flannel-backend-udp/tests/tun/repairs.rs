//! What others break is whole again within a second, and a restart loses next to nothing.

use std::{collections::BTreeMap, ffi::OsString, net::SocketAddr, sync::Arc, time::Duration};

use flannel_core::{Backend, NetworkConfig, PeerFault};
use flannel_netlink::{
    LinkChange, LinkSpec, LinkSpecKind, ensure_link,
    state::{Address, LinkKind, Route},
};
use flannel_testbed::probe;
use tokio::time::timeout;

use crate::{
    lab::{Kind, Lab, Node, PATIENCE},
    support::{self, Kernel},
};

const PAIR: [Kind; 2] = [Kind::Ours, Kind::Ours];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_deleted_device_is_made_again() {
    let mut lab = Lab::new(&PAIR).await;
    Kernel::of(lab.host(0)).delete("flannel0").await;
    assert!(!lab.reaches(0, 1).await);
    assert!(lab.repair(0, 1).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_device_that_was_set_down_or_made_smaller_is_put_right() {
    let mut lab = Lab::new(&PAIR).await;
    let mut kernel = Kernel::of(lab.host(0));
    kernel.alter("flannel0", LinkChange { up: Some(false), ..LinkChange::default() }).await;
    assert!(lab.repair(0, 1).await);
    kernel.alter("flannel0", LinkChange { mtu: Some(600), ..LinkChange::default() }).await;
    assert!(lab.repair(0, 1).await);
    lab.sync(0).await.unwrap();
    assert_eq!(kernel.link("flannel0").await.mtu, 1472);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_queue_that_was_made_shorter_is_put_right_and_a_longer_one_is_left() {
    let mut lab = Lab::new(&PAIR).await;
    let mut kernel = Kernel::of(lab.host(0));
    let ours = kernel.link("flannel0").await.queue;
    for (queue, then) in [(ours + 1, ours + 1), (ours - 1, ours)] {
        let change = LinkChange { queue: Some(queue), ..LinkChange::default() };
        kernel.alter("flannel0", change).await;
        let network = &mut lab.node(0).network;
        if then == queue {
            let told = timeout(Duration::from_millis(300), network.drifted()).await;
            assert!(told.is_err(), "it is as good");
        } else {
            timeout(PATIENCE, network.drifted()).await.unwrap().unwrap();
        }
        lab.sync(0).await.unwrap();
        assert_eq!(kernel.link("flannel0").await.queue, then);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn packets_go_on_after_the_link_was_down_or_made_anew() {
    let mut lab = Lab::new(&PAIR).await;
    lab.host(0).link_down().await.unwrap();
    assert!(!lab.reaches(0, 1).await);
    lab.host(0).link_up().await.unwrap();
    assert!(lab.repair(0, 1).await);
    lab.host(0).delete_uplink().await.unwrap();
    assert!(!lab.reaches(0, 1).await);
    lab.host(0).create_uplink().await.unwrap();
    assert!(lab.repair(0, 1).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn the_device_follows_the_mtu_of_the_link() {
    let mut lab = Lab::new(&PAIR).await;
    lab.host(0).set_mtu(1400).await.unwrap();
    let network = &mut lab.node(0).network;
    timeout(PATIENCE, network.drifted()).await.unwrap().unwrap();
    while network.mtu() != 1372 {
        timeout(PATIENCE, network.drifted()).await.unwrap().unwrap();
    }
    lab.sync(0).await.unwrap();
    assert_eq!(Kernel::of(lab.host(0)).link("flannel0").await.mtu, 1372);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn another_mtu_is_taken_up_without_a_lost_packet() {
    let mut lab = Lab::new(&PAIR).await;
    let stream = probe::stream(&lab.pods[0], lab.pod_ip(1).into(), 200).unwrap();
    stream.flowing().await;
    let options = |json: &str| {
        let text = support::IPV4.replace(r#""Engine":"userspace""#, json);
        text.parse::<NetworkConfig>().unwrap().backend().clone()
    };
    let network = &mut lab.node(0).network;
    network.reconfigure(&options(r#""Engine":"userspace","MTU":1400"#)).unwrap();
    assert_eq!(network.mtu(), 1372);
    network.reconfigure(&options(r#""Engine":"userspace","Port":9"#)).unwrap_err();
    lab.sync(0).await.unwrap();
    assert_eq!(Kernel::of(lab.host(0)).link("flannel0").await.mtu, 1372);
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn nothing_spins_while_nothing_works() {
    let _load = crate::LOAD.lock().await;
    let mut lab = Lab::new(&PAIR).await;
    Kernel::of(lab.host(0)).delete("flannel0").await;
    lab.host(1).link_down().await.unwrap();
    // The first notices what happened and ends; nobody syncs.
    timeout(PATIENCE, lab.node(0).network.drifted()).await.unwrap().unwrap();
    // Threads of other tests count in, and pause some time. One that spins never does.
    for _ in 0..120 {
        let before = engine_ticks();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = engine_ticks();
        let used = now.iter().filter_map(|(thread, ticks)| ticks.checked_sub(*before.get(thread)?));
        if used.sum::<u64>() <= 2 {
            return;
        }
    }
    panic!("more than 2 ticks of 10 ms in each half a second");
}

/// What each thread of an engine in this process has used, in hundredths of a second.
fn engine_ticks() -> BTreeMap<OsString, u64> {
    let mut ticks = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        if name.contains("(udp-") {
            let fields: Vec<_> = rest.split_whitespace().collect();
            let used = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            ticks.insert(task.file_name(), used);
        }
    }
    ticks
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_name_that_is_taken_is_left_alone() {
    let mut lab = Lab::new(&[Kind::Nobody, Kind::Ours]).await;
    let spec = LinkSpec::new("flannel0", LinkSpecKind::Bridge);
    let mut kernel = Kernel::of(lab.host(0));
    ensure_link(&mut kernel.0, &spec).await.unwrap();
    let backend = Arc::new(support::udp(lab.host(0), &lab.config));
    let mut network = backend.start(&lab.leases[0]).await.unwrap();
    network.sync(&lab.peers(0)).await.unwrap();
    lab.nodes[0] = Some(Node { backend, network });
    assert!(lab.reaches(0, 1).await);
    assert_eq!(kernel.link("flannel0").await.kind, LinkKind::Bridge);
    assert_eq!(kernel.link("flannel1").await.mtu, 1472);
    lab.nodes[0].take().unwrap().network.teardown().await.unwrap();
    assert_eq!(kernel.find("flannel1").await, None);
    assert!(kernel.find("flannel0").await.is_some());
    let routes: Vec<Route> = kernel.routes().await;
    assert_eq!(routes, []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_device_that_an_earlier_configuration_left_is_removed() {
    let lab = Lab::new(&[Kind::Nobody, Kind::Nobody]).await;
    let make = || {
        for name in ["flannel7", "flannel8"] {
            tun_rs::DeviceBuilder::new().name(name).build_sync().unwrap().persist().unwrap();
        }
    };
    lab.host(0).namespace().run(make).unwrap();
    let mut kernel = Kernel::of(lab.host(0));
    for (name, address) in [("flannel7", "10.244.9.0/32"), ("flannel8", "192.0.2.9/32")] {
        let address = Address::new(kernel.link(name).await.index, address.parse().unwrap());
        kernel.0.apply_one(address.replace()).await.unwrap();
    }
    let backend = support::udp(lab.host(0), &lab.config);
    let _network = backend.start(&lab.leases[0]).await.unwrap();
    assert_eq!(kernel.find("flannel7").await, None);
    assert!(kernel.find("flannel8").await.is_some(), "somebody else's");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_port_that_is_taken_is_named() {
    let lab = Lab::new(&[Kind::Nobody, Kind::Nobody]).await;
    let address = SocketAddr::new(lab.address(0).into(), 8285);
    let bind = || std::net::UdpSocket::bind(address);
    let _taken = lab.host(0).namespace().run(bind).unwrap().unwrap();
    let backend = support::udp(lab.host(0), &lab.config);
    let mut network = backend.start(&lab.leases[0]).await.unwrap();
    let error = network.sync(&lab.peers(0)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on UDP {address}"));
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_restart_beside_the_old_one_leaves_a_short_gap() {
    let mut lab = Lab::new(&PAIR).await;
    let probes = probe::stream(&lab.pods[0], lab.pod_ip(1).into(), 500).unwrap();
    timeout(PATIENCE, probes.flowing()).await.unwrap();
    for _ in 0..5 {
        let backend = Arc::new(support::udp(lab.host(0), &lab.config));
        let network = backend.start(&lab.leases[0]).await.unwrap();
        let mut old = lab.nodes[0].replace(Node { backend, network }).unwrap();
        lab.sync(0).await.unwrap();
        // The old one does not take its device back.
        assert!(!old.network.sync(&lab.peers(0)).await.unwrap_err().is_retryable());
        timeout(PATIENCE, probes.flowing()).await.unwrap();
    }
    let report = probes.stop().await;
    // The kernel drops what it has for a queue that ends, until nobody looks at the queue any more.
    assert!(report.longest_gap < GAP, "{report}");
}

/// What a restart may take.
const GAP: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_route_of_somebody_else_to_a_peer_is_a_fault_of_that_peer() {
    let mut lab = Lab::new(&[Kind::Ours, Kind::Ours, Kind::Ours]).await;
    let mut kernel = Kernel::of(lab.host(0));
    let eth0 = kernel.link("eth0").await.index;
    let nowhere = [192, 0, 2, 99].into();
    for (block, peers) in
        [("10.244.2.0/25", &[1][..]), ("10.244.2.0/24", &[1]), ("10.244.0.0/16", &[1, 2])]
    {
        let theirs = Route::new(block.parse().unwrap(), Route::BOOT).via_gateway(nowhere, eth0);
        kernel.0.apply_one(theirs.replace()).await.unwrap();
        timeout(PATIENCE, lab.node(0).network.drifted()).await.expect("it is noticed").unwrap();
        let report = lab.sync(0).await.unwrap();
        let route = format!("route {block} via 192.0.2.99 on device {eth0}");
        let fault = PeerFault::Overridden { route };
        let found: Vec<_> = report.problems.iter().map(|it| (it.peer, &it.fault)).collect();
        let expected: Vec<_> = peers.iter().map(|n| (lab.leases[*n].subnet, &fault)).collect();
        assert_eq!((found, report.writes()), (expected, 0), "{block}");
        assert!(!lab.reaches(0, 1).await, "it is as bad as the report says");
        kernel.0.apply_one(theirs.delete()).await.unwrap();
        assert!(lab.repair(0, 1).await);
        assert_eq!(lab.sync(0).await.unwrap().problems, []);
    }
}
