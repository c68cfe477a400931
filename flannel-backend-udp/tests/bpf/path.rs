//! Paths to peers: which of them packets take, from which port, and what routers say of those that programs sent.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use flannel_testbed::{Pod, probe::Ping};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{support, world::Cluster};

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn a_path_that_a_router_calls_small_is_small() {
    let cluster = Cluster::new(support::DUAL, &[]).await;
    assert!(cluster.reaches(0, 1).await);
    for to in cluster.world.pod(1).endpoint().ips() {
        let (pod, whole) = (cluster.world.pod(0), Ping::default().unfragmented());
        let whole = |size| pod.ping_with(to, whole.size(size).timeout(Duration::from_millis(300)));
        let before = cluster.stats(0).by_ebpf;
        assert!(whole(1400).await.is_ok(), "{to}");
        assert!(cluster.stats(0).by_ebpf >= before + 2, "{to}");
        call_small(&cluster, to.is_ipv4());
        assert!(whole(1400).await.is_err(), "{to}");
        // IPv6 does not go below this, and leaves in fragments.
        assert!(whole(if to.is_ipv4() { 1272 } else { 1280 }).await.is_ok(), "{to}");
        assert!(pod.ping_with(to, Ping::default().size(1400)).await.is_ok(), "{to}");
    }
}

/// The third host tells the first that a datagram to the second, with a port of the programs, is larger than 1300 bytes.
fn call_small(cluster: &Cluster, is_ipv4: bool) {
    let of = |n: usize| -> IpAddr {
        let host = cluster.host(n);
        if is_ipv4 { host.ipv4().unwrap().into() } else { host.ipv6().unwrap().into() }
    };
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut message = if is_ipv4 {
        // Fragmentation needed; length 1428, do not fragment, UDP.
        [&[3, 4, 0, 0, 0, 0, 5, 20][..], &[0x45, 0, 5, 0x94, 0, 7, 0x40, 0, 63, 17, 0, 0]].concat()
    } else {
        // Packet too big; length 1408, UDP.
        [&[2, 0, 0, 0, 0, 0, 5, 20][..], &[0x60, 0, 0, 0, 5, 0x80, 17, 63]].concat()
    };
    message.extend([bytes(of(0)), bytes(of(1))].concat());
    message.extend([0xc1, 0x23, 0x20, 0x5d, 5, 0x80, 0, 0]);
    if is_ipv4 {
        let words = message.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum: u32 = words.sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    let protocol = if is_ipv4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let to = std::net::SocketAddr::new(of(0), 0);
    let raw = || Socket::new(Domain::for_address(to), Type::RAW, Some(protocol));
    let router = cluster.host(2).namespace().run(raw).unwrap().unwrap();
    router.send_to(&message, &to.into()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn a_rule_of_the_host_chooses_the_path_to_a_peer() {
    for userspace in [&[][..], &["host1", "host2", "host3", "host4"]] {
        let cluster = Cluster::new(support::DUAL, userspace).await;
        let [peer, router] = [1, 2].map(|n| cluster.host(n));
        for (ip, peer, router) in [
            ("ip -4", peer.ipv4().unwrap().into(), router.ipv4().unwrap().into()),
            ("ip -6", IpAddr::from(peer.ipv6().unwrap()), IpAddr::from(router.ipv6().unwrap())),
        ] {
            cluster.run(0, &format!("{ip} rule add to {peer} lookup 77"));
            cluster.run(0, &format!("{ip} route add {peer} via {router} dev eth0 table 77"));
        }
        cluster.run(2, "nft add table inet t");
        let chain = "{ type filter hook forward priority 0 ; }";
        cluster.run(2, &format!("nft add chain inet t forward {chain}"));
        for to in cluster.world.pod(1).endpoint().ips() {
            let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
            let rule = format!("meta nfproto {family} udp dport 8285 counter");
            cluster.run(2, &format!("nft add rule inet t forward {rule}"));
            let before = cluster.stats(0).by_ebpf;
            for _ in 0..5 {
                cluster.world.pod(0).ping(to).await.unwrap();
            }
            let by_ebpf = cluster.stats(0).by_ebpf - before;
            assert_eq!(by_ebpf >= 10, userspace.is_empty(), "{to}: {by_ebpf} by programs");
            // All of them: the first waits for a neighbour, and is sent in another way than the last.
            let counted = cluster.run(2, "nft list chain inet t forward");
            assert!(counted.contains("packets 5 "), "{userspace:?}, {family}: {counted}");
            cluster.run(2, "nft flush chain inet t forward");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn each_flow_has_a_source_port_of_its_own() {
    for userspace in [&[][..], &["host1"]] {
        let cluster = Cluster::new(support::DUAL, userspace).await;
        let (from, to) = (cluster.world.pod(0), cluster.world.pod(1));
        for to in to.endpoint().ips() {
            from.ping(to).await.unwrap();
            let ports: Vec<_> = (0..4).map(|_| source_ports(&cluster, from, to)).collect();
            assert!(ports.iter().all(|it| it.len() == 1), "{to}: one flow, one port: {ports:?}");
            let all: BTreeSet<u16> = ports.into_iter().flatten().collect();
            if userspace.is_empty() {
                assert!(all.len() > 1 && all.iter().all(|port| *port >= 0xc000), "{to}: {all:?}");
            } else {
                assert_eq!(all, [8285].into(), "{to}");
            }
        }
    }
}

/// From which ports host 1 gets the datagrams of a flow.
fn source_ports(cluster: &Cluster, from: &Pod, to: IpAddr) -> BTreeSet<u16> {
    let all = i32::from(0x0003_u16.to_be()); // ETH_P_ALL
    let open = || Socket::new(Domain::PACKET, Type::RAW, Some(all.into()));
    let mut wire = cluster.host(1).namespace().run(open).unwrap().unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let flow = from.namespace().run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    let inner_port = flow.local_addr().unwrap().port();
    let header = if to.is_ipv4() { 20 } else { 40 };
    let mut ports = BTreeSet::new();
    for _ in 0..5 {
        flow.send_to(b"hello", (to, 7777)).unwrap();
        loop {
            let mut frame = [0; 2048];
            let len = wire.read(&mut frame).unwrap();
            let port = |at| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let (outer, inner) = (14 + header, 14 + header + 8 + header);
            if len == inner + 8 + 5 && port(outer + 2) == 8285 && port(inner) == inner_port {
                ports.insert(port(outer));
                break;
            }
        }
    }
    ports
}
