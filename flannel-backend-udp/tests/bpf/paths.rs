//! Paths that take less than the network card.

use std::{net::IpAddr, time::Duration};

use flannel_backend_udp::DropReason;
use flannel_testbed::{
    Pod,
    probe::{Ping, tcp_throughput},
};

use crate::world::{Cluster, received, run};

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"ebpf"}}"#;

/// Has host 2 route between hosts 0 and 1.
fn put_a_router_between(cluster: &Cluster) {
    for setting in ["ipv4.conf.all.send_redirects", "ipv4.conf.eth0.send_redirects"] {
        cluster.run(2, &format!("sysctl -qw net.{setting}=0"));
    }
    let [a, b, router] = [0, 1, 2].map(|host| cluster.host(host));
    for (from, to) in [(0, b), (1, a)] {
        cluster.run(from, "sysctl -qw net.ipv6.conf.eth0.accept_redirects=0");
        for (ip, via) in [
            (IpAddr::V4(to.ipv4().unwrap()), IpAddr::V4(router.ipv4().unwrap())),
            (IpAddr::V6(to.ipv6().unwrap()), IpAddr::V6(router.ipv6().unwrap())),
        ] {
            cluster.run(from, &format!("ip route add {ip} via {via} dev eth0"));
        }
    }
}

/// What the path through the router takes on its way to this host.
fn narrow(cluster: &Cluster, to: usize, mtu: usize) {
    let to = cluster.host(to);
    for ip in [IpAddr::V4(to.ipv4().unwrap()), IpAddr::V6(to.ipv6().unwrap())] {
        cluster.run(2, &format!("ip route add {ip} dev eth0 mtu lock {mtu}"));
    }
}

/// Whether a packet of this size that nobody may cut gets from the pod of one host to that of the other, and the answer back.
async fn passes_whole(cluster: &Cluster, from: usize, size: usize) -> bool {
    let (from, to) = (cluster.world.pod(from), cluster.world.pod(1 - from));
    let how = Ping::default().size(size).unfragmented().timeout(Duration::from_millis(300));
    from.ping_with(to.ip(), how).await.is_ok()
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn where_routers_say_nothing_large_packets_pass_all_the_same() {
    for userspace in [&[][..], &["host2"], &["host1", "host2", "host3", "host4"]] {
        let cluster = Cluster::start(r#","PathMTUDiscovery":false"#, userspace).await;
        put_a_silent_router_between(&cluster);
        if !userspace.is_empty() {
            // A veth pair hands large packets and partial checksums over as they are, which no network card does.
            for host in 0..2 {
                cluster.run(host, "ethtool -K eth0 tx off tso off gso off");
            }
        }
        for from in 0..2 {
            let case = format!("{userspace:?} from {from}");
            assert!(passes_whole(&cluster, from, 1272).await, "{case}");
            assert!(passes_whole(&cluster, from, 1472).await, "{case}");
            let (a, b) = (cluster.world.pod(from), cluster.world.pod(1 - from));
            let in_pieces = a.ping_with(b.ip(), Ping::default().size(8000)).await;
            assert!(in_pieces.is_ok(), "{case}: {in_pieces:?}");
            let (sender, receiver, address) = cluster.sockets(from, 1 - from);
            for size in [1444, 5000] {
                sender.send_to(&vec![7; size], address).unwrap();
                assert_eq!(received(&receiver).map(|it| it.len()), Some(size), "{case}");
            }
            let went = tcp_throughput(a, b, Duration::from_millis(300)).await.unwrap();
            assert!(went.bytes > 1 << 20, "{case}: {went:?}");
        }
    }
}

/// Which is what would happen to those above if routers might not cut.
#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn where_routers_say_nothing_and_may_not_cut_large_packets_are_lost() {
    for userspace in [&[][..], &["host1", "host2", "host3", "host4"]] {
        let cluster = Cluster::start("", userspace).await;
        put_a_silent_router_between(&cluster);
        assert!(passes_whole(&cluster, 0, 1272).await, "{userspace:?}");
        assert!(!passes_whole(&cluster, 0, 1273).await, "{userspace:?}");
    }
}

/// A router whose path takes 1300 bytes both ways, and nobody hears of it.
fn put_a_silent_router_between(cluster: &Cluster) {
    for setting in ["ipv4.conf.all.send_redirects", "ipv4.conf.eth0.send_redirects"] {
        cluster.run(2, &format!("sysctl -qw net.{setting}=0"));
    }
    let [a, b, router] = [0, 1, 2].map(|host| cluster.host(host).ipv4().unwrap());
    for (from, to) in [(0, b), (1, a)] {
        cluster.run(from, &format!("ip route add {to} via {router} dev eth0"));
        cluster.run(2, &format!("ip route add {to} dev eth0 mtu lock 1300"));
    }
    let silence = "add table ip no; add chain ip no out { type filter hook output priority 0; }; \
                   add rule ip no out icmp type destination-unreachable drop";
    let mut nft = std::process::Command::new("nft");
    nft.arg(silence);
    let done = cluster.host(2).namespace().run(move || nft.output()).unwrap().unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn senders_are_told_what_the_path_takes() {
    let mut cluster = Cluster::of(DUAL, &[]).await;
    put_a_router_between(&cluster);
    let ends = |cluster: &Cluster, from: usize| {
        let (sender, receiver) = (cluster.world.pod(from), cluster.world.pod(1 - from));
        let ips = [IpAddr::V4(receiver.ipv4().unwrap()), receiver.ipv6().unwrap().into()];
        (sender.namespace().clone(), ips)
    };
    for (from, mtu) in [(0, 1400), (1, 1390)] {
        narrow(&cluster, 1 - from, mtu);
        for (family, overhead) in [(0, 28), (1, 48)] {
            let takes = mtu - overhead;
            let (namespace, ips) = ends(&cluster, from);
            let ip = ips[family];
            let whole = async |pod: &Pod, size: usize| {
                let how = Ping::default().size(size).unfragmented();
                pod.ping_with(ip, how.timeout(Duration::from_millis(100))).await.is_ok()
            };
            assert!(whole(cluster.world.pod(from), takes).await, "{ip}");
            let dropped = cluster.stats(from).dropped(DropReason::TooBig);
            let is_told = async |pod: &Pod| {
                assert!(!whole(pod, takes + 1).await, "{ip}");
                run(&namespace, &format!("ip route get {ip}")).contains(&format!("mtu {takes}"))
            };
            if from == 0 {
                let (nodes, world) = (&mut cluster.nodes, &cluster.world);
                let mut told = false;
                for _ in 0..5 {
                    told |= told || nodes.repair(async || is_told(world.pod(0)).await).await;
                }
                assert!(told, "{ip}");
            } else {
                // Nobody looks after host 1 but this test.
                let pod = cluster.world.pod(from).clone();
                assert!(!is_told(&pod).await, "{ip}");
                cluster.nodes.sync(from).await;
                assert!(is_told(&pod).await, "{ip}");
            }
            assert!(cluster.stats(from).dropped(DropReason::TooBig) > dropped, "{ip}");
        }
    }
    // Whoever may not be told has its packets cut.
    let (_, ips) = ends(&cluster, 0);
    let answer = cluster.world.pod(0).ping_with(ips[0], Ping::default().size(1400)).await;
    assert!(answer.is_ok(), "{answer:?}");
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (cluster.world.pod(from), cluster.world.pod(to));
        let went = tcp_throughput(from, to, Duration::from_millis(300)).await.unwrap();
        assert!(went.bytes > 1 << 20, "{went:?}");
    }
}
