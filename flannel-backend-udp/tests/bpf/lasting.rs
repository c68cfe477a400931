//! What is there stays, comes back, or goes, as it should.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use flannel_backend_udp::Engine;

use crate::world::{Cluster, received};

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn a_restart_loses_no_packet() {
    let mut cluster = Cluster::start("", &[]).await;
    assert!(cluster.reaches(0, 1).await);
    let filter = cluster.run(0, "tc filter show dev eth0 ingress");
    let (sender, receiver, address) = cluster.sockets(0, 1);
    let (stops, mut sent) = (Arc::new(AtomicBool::new(false)), 0_u32);
    let counter = thread::spawn(move || {
        let mut numbers = Vec::new();
        while let Some(data) = received(&receiver) {
            numbers.push(u32::from_be_bytes(data.try_into().unwrap()));
        }
        numbers
    });
    let stop = Arc::clone(&stops);
    let sending = thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            sender.send_to(&u32::to_be_bytes(sent), address).unwrap();
            sent += 1;
            thread::sleep(Duration::from_micros(200));
        }
        sent
    });
    for _ in 0..5 {
        cluster.restart().await;
        let report = cluster.nodes.sync(0).await;
        assert_eq!(report.writes(), 0, "{report:?}");
        assert!(matches!(cluster.stats(0).engine, Some(Engine::Ebpf(_))));
    }
    stops.store(true, Ordering::Relaxed);
    let sent = sending.join().unwrap();
    let numbers = counter.join().unwrap();
    assert!(sent > 50, "{sent}");
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>());
    assert_eq!(cluster.run(0, "tc filter show dev eth0 ingress"), filter);
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn what_others_remove_is_back_within_a_second() {
    let mut cluster = Cluster::start("", &[]).await;
    let filter = cluster.run(0, "tc filter show dev eth0 ingress");
    assert!(
        filter.contains("pref 8285 bpf") && filter.contains("handle 0x205d flannel-udp "),
        "{filter}"
    );
    for damage in [
        "tc filter del dev eth0 ingress",
        "tc qdisc del dev eth0 clsact",
        "ip route del 10.244.0.0/16",
        "ip route replace 10.244.0.0/16 dev flannel0 proto 241 scope link",
        "ip link set flannel0 down",
        "ip link del flannel0",
    ] {
        cluster.run(0, damage);
        let (nodes, world) = (&mut cluster.nodes, &cluster.world);
        let host = world.testbed().host(0);
        let done = async || {
            let filters = crate::world::run(host.namespace(), "tc filter show dev eth0 ingress");
            let route = crate::world::run(host.namespace(), "ip route show 10.244.0.0/16");
            filters.contains("flannel-udp ") && route.contains("encap bpf")
        };
        assert!(nodes.repair(done).await, "{damage}");
        assert!(cluster.reaches(0, 1).await, "{damage}");
    }
    // All of it by the programs.
    let stats = cluster.stats(0);
    let before = stats.by_ebpf;
    assert!(cluster.reaches(0, 1).await);
    assert!(cluster.stats(0).by_ebpf > before);
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn filters_of_others_are_left_alone() {
    let mut cluster = Cluster::start("", &[]).await;
    let theirs = "match ip dst 203.0.113.7/32 flowid 1:1";
    for direction in ["ingress", "egress"] {
        cluster
            .run(0, &format!("tc filter add dev eth0 {direction} pref 7 protocol ip u32 {theirs}"));
    }
    let shown = |cluster: &Cluster| {
        let text = cluster.run(0, "tc filter show dev eth0 ingress pref 7");
        text + &cluster.run(0, "tc filter show dev eth0 egress")
    };
    let before = shown(&cluster);
    assert!(before.contains("cb007107"), "{before}");
    cluster.restart().await;
    cluster.nodes.sync(0).await;
    assert_eq!(shown(&cluster), before);
    assert!(cluster.reaches(0, 1).await);
    let (_, network) = cluster.nodes.into_first();
    network.teardown().await.unwrap();
    let after = crate::world::run(
        cluster.world.testbed().host(0).namespace(),
        "tc filter show dev eth0 ingress",
    );
    assert!(after.contains("cb007107") && !after.contains("flannel-udp"), "{after}");
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn the_qdisc_goes_if_it_was_ours_and_stays_if_it_was_not() {
    for was_there in [false, true] {
        let mut cluster = Cluster::start("", &[]).await;
        if was_there {
            cluster.run(0, "tc qdisc del dev eth0 clsact");
            cluster.run(0, "tc qdisc add dev eth0 clsact");
            cluster.nodes.repair(async || false).await;
            assert!(cluster.run(0, "tc filter show dev eth0 ingress").contains("flannel-udp"));
        }
        // Who made it is known to the next process as well.
        cluster.restart().await;
        cluster.nodes.sync(0).await;
        let (_, network) = cluster.nodes.into_first();
        network.teardown().await.unwrap();
        let host = cluster.world.testbed().host(0).namespace();
        let left = crate::world::run(host, "tc qdisc show dev eth0");
        assert_eq!(left.contains("clsact"), was_there, "{left}");
    }
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn the_userspace_engine_takes_over_what_the_programs_leave() {
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Engine":"ebpf"}}"#;
    let cluster = Cluster::of(config, &[]).await;
    assert!(cluster.reaches(0, 1).await);
    // The same host with another choice, as after a changed configuration.
    let (lease, network) = cluster.nodes.into_first();
    drop(network);
    let host = cluster.world.testbed().host(0);
    let backend = crate::support::udp(host, &crate::support::IPV4.parse().unwrap());
    let mut network = flannel_core::Backend::start(&backend, &lease).await.unwrap();
    let mut peers = flannel_core::Peers::new(config.parse().unwrap(), lease.clone());
    peers.fold(flannel_core::LeaseEvent::Reset(vec![]));
    network.sync(&peers).await.unwrap();
    let left = crate::world::run(host.namespace(), "tc qdisc show dev eth0");
    assert!(!left.contains("clsact"), "{left}");
    let route = crate::world::run(host.namespace(), "ip route show 10.244.0.0/16");
    assert!(!route.contains("encap"), "{route}");
    let devices = crate::world::run(host.namespace(), "ip -brief link show type vxlan");
    assert_eq!(devices, "", "the detour goes as well");
}
