//! What routers say of the path to a peer about packets that programs sent.

use std::{net::IpAddr, time::Duration};

use flannel_testbed::probe::Ping;
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
        assert!(whole(1400).await.is_ok(), "{to}");
        let by_ebpf = cluster.stats(0).by_ebpf;
        assert!(by_ebpf >= 2);
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
