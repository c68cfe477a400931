//! Packets get there, and by which way.

use std::time::Duration;

use flannel_backend_udp::{DropReason, Engine};
use flannel_testbed::probe::{Ping, tcp_throughput};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::world::{Cluster, packet, received, socket};

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn the_kernel_carries_packets_of_all_sizes() {
    let cluster = Cluster::start("", &[]).await;
    let (from, to) = (cluster.world.pod(0), cluster.world.pod(1));
    let before = cluster.stats(0);
    assert!(matches!(before.engine, Some(Engine::Ebpf(_))), "{before:?}");
    assert_eq!(before.ebpf_refused, None);
    // The last one is in fragments before it leaves the pod.
    for size in [68, 84, 576, 1472, 8000] {
        let answer = from.ping_with(to.ip(), Ping::default().size(size)).await;
        assert!(answer.is_ok(), "{size}: {answer:?}");
    }
    let after = cluster.stats(0);
    let by_userspace = (after.sent.packets + after.received.packets) - after.by_ebpf;
    assert!(after.by_ebpf - before.by_ebpf >= 18, "{after:?}");
    assert_eq!(by_userspace, 0, "{after:?}");

    tcp_throughput(from, to, Duration::from_millis(300)).await.unwrap();
    let carried = cluster.stats(0).by_ebpf - after.by_ebpf;
    let sent = cluster.stats(0).sent.packets + cluster.stats(0).received.packets;
    assert_eq!(sent, cluster.stats(0).by_ebpf);
    assert!(carried > 1000, "{carried}");
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn both_families_are_carried() {
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"ebpf"}}"#;
    let cluster = Cluster::of(config, &[]).await;
    let to = cluster.world.pod(1);
    for ip in [to.ipv4().unwrap().into(), to.ipv6().unwrap().into()] {
        let before = cluster.stats(0);
        for size in [100, 1452, 5000] {
            let pod = cluster.world.pod(0);
            // The first one tells the pod the size that fits, and the first answer the other pod.
            let mut answer = pod.ping_with(ip, Ping::default().size(size)).await;
            for _ in 0..2 {
                answer = pod.ping_with(ip, Ping::default().size(size)).await;
            }
            assert!(answer.is_ok(), "{ip} {size}: {answer:?}");
        }
        let after = cluster.stats(0);
        assert!(after.by_ebpf - before.by_ebpf >= 10, "{ip}: {after:?}");
        assert_eq!(after.sent.packets + after.received.packets, after.by_ebpf, "{ip}");
    }
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn a_packet_that_is_too_large_is_told_the_size_that_fits() {
    let cluster = Cluster::start("", &[]).await;
    let (from, to) = (cluster.world.pod(0), cluster.world.pod(1));
    let whole = |size| from.ping_with(to.ip(), Ping::default().size(size).unfragmented());
    assert!(whole(1472).await.is_ok());
    assert!(whole(1473).await.is_err());
    // The kernel of the pod was told.
    let routes = crate::world::run(from.namespace(), &format!("ip route get {}", to.ip()));
    assert!(routes.contains("mtu 1472"), "{routes}");
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn four_routers_lie_between_two_pods_as_with_the_userspace_engine() {
    for userspace in [&[][..], &["host1", "host2", "host3", "host4"]] {
        let cluster = Cluster::start("", userspace).await;
        assert!(cluster.reaches(0, 1).await);
        let (sender, receiver, address) = cluster.sockets(0, 1);
        for ttl in 1..=5 {
            sender.set_ttl(ttl).unwrap();
            sender.send_to(&[ttl as u8], address).unwrap();
        }
        assert_eq!(received(&receiver).as_deref(), Some(&[5][..]), "{userspace:?}");
        assert_eq!(received(&receiver), None, "{userspace:?}");
        // The kernel forwards on both hosts, and each engine takes one.
        for host in 0..2 {
            let expired = cluster.stats(host).dropped(DropReason::TtlExpired);
            assert_eq!(expired, 1, "{userspace:?} {host}");
        }
    }
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn what_the_programs_do_not_take_goes_through_the_userspace_engine() {
    let cluster = Cluster::start("", &[]).await;
    assert!(cluster.reaches(0, 1).await);
    let (sender, receiver, address) = cluster.sockets(0, 1);
    let by_userspace = |host: usize| {
        let stats = cluster.stats(host);
        stats.sent.packets + stats.received.packets - stats.by_ebpf
    };

    // A large UDP packet that the kernel would have to cut inside of UDP.
    setsockopt(&sender, UdpGsoSegment, &1000).unwrap();
    sender.send_to(&[7; 3500], address).unwrap();
    let sizes: Vec<_> = std::iter::from_fn(|| received(&receiver)).map(|it| it.len()).collect();
    assert_eq!(sizes, [1000, 1000, 1000, 500]);
    assert!(by_userspace(0) >= 4, "{:?}", cluster.stats(0));

    // A datagram that came in fragments.
    let before = by_userspace(1);
    let outside = socket(cluster.host(0).namespace(), cluster.host(0).ip());
    let pod = cluster.world.pod(0).ipv4().unwrap();
    let large = packet(pod, address, 64, &[9; 2000]);
    outside.send_to(&large, (cluster.host(1).ip(), 8285)).unwrap();
    assert_eq!(received(&receiver).map(|it| it.len()), Some(2000));
    // It is counted after it was handed over.
    let counted = async {
        while by_userspace(1) != before + 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), counted).await.unwrap();

    // Garbage.
    for garbage in [&b""[..], b"x", &[0x45; 30], &[0; 60], &large[..500]] {
        outside.send_to(garbage, (cluster.host(1).ip(), 8285)).unwrap();
    }
    // Nobody has this one: its sender is told, by the userspace engine.
    let nobody = socket(cluster.world.pod(0).namespace(), cluster.world.pod(0).ip());
    nobody.send_to(b"hello", ("10.244.200.1", 9)).unwrap();
    let told = async {
        while cluster.stats(0).answered == 0 {
            assert!(cluster.reaches(0, 1).await);
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.unwrap();
    assert!(cluster.stats(0).dropped(DropReason::NoRoute) >= 1);
    // The other host takes its time.
    let dropped = async {
        while cluster.stats(1).drops().map(|(_, n)| n).sum::<u64>() < 4 {
            tokio::task::yield_now().await;
        }
    };
    let dropped = tokio::time::timeout(Duration::from_secs(5), dropped).await;
    assert!(dropped.is_ok(), "{:?}", cluster.stats(1));
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn both_engines_understand_each_other() {
    let cluster = Cluster::start("", &["host2"]).await;
    // A veth pair hands large packets and partial checksums over as they are, which no network card does.
    for host in 0..2 {
        cluster.run(host, "ethtool -K eth0 tx off tso off gso off");
    }
    assert!(matches!(cluster.stats(0).engine, Some(Engine::Ebpf(_))));
    assert!(matches!(cluster.stats(1).engine, Some(Engine::Userspace(_))));
    let (a, b) = (cluster.world.pod(0), cluster.world.pod(1));
    for (from, to) in [(a, b), (b, a)] {
        for size in [68, 576, 1472, 8000] {
            let answer = from.ping_with(to.ip(), Ping::default().size(size)).await;
            assert!(answer.is_ok(), "{size}: {answer:?}");
        }
        let went = tcp_throughput(from, to, Duration::from_millis(300)).await.unwrap();
        assert!(went.bytes > 1 << 20, "{went:?}");
    }
    assert!(cluster.stats(0).by_ebpf > 1000);
}
