//! What is on the wire, and what senders are told.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use flannel_backend_udp::DropReason;
use flannel_core::testing::network::Nodes;
use flannel_testbed::{Pod, probe};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, sleep};

use crate::{
    lab::{Kind, Lab, PATIENCE},
    support::{self, Kernel},
};

pub(crate) fn socket(pod: &Pod) -> UdpSocket {
    let address = SocketAddr::new(pod.ip(), 0);
    let socket = pod.namespace().run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_tunnel_costs_two_hops_and_28_bytes() {
    let lab = Lab::new(&[Kind::Ours, Kind::Ours]).await;
    let (from, to) = (socket(&lab.pods[0]), socket(&lab.pods[1]));
    to.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let arrives = |ttl| {
        from.set_ttl(ttl).unwrap();
        from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
        to.recv_from(&mut [0; 16]).is_ok()
    };
    // One for each host and one for each end of the tunnel.
    assert_eq!((1..8).find(|ttl| arrives(*ttl)), Some(5));
    lab.expect_dropped(0, DropReason::TtlExpired, 1).await;
    lab.expect_dropped(1, DropReason::TtlExpired, 1).await;
    let whole = probe::Ping::default().unfragmented();
    assert!(lab.pods[0].ping_with(lab.pod_ip(1).into(), whole.size(1472)).await.is_ok());
    assert!(lab.pods[0].ping_with(lab.pod_ip(1).into(), whole.size(1473)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_datagram_is_the_packet_and_nothing_else() {
    let lab = Lab::new(&[Kind::Ours, Kind::Nobody]).await;
    let peer = SocketAddr::new(lab.address(1).into(), 8285);
    let wire = lab.host(1).namespace().run(|| UdpSocket::bind(peer)).unwrap().unwrap();
    wire.set_read_timeout(Some(PATIENCE)).unwrap();
    let from = socket(&lab.pods[0]);
    from.send_to(b"hello", "10.244.2.2:7777").unwrap();
    let mut buffer = [0; 2048];
    let (len, sender) = wire.recv_from(&mut buffer).unwrap();
    assert_eq!(sender, SocketAddr::new(lab.address(0).into(), 8285));
    let packet = &buffer[..len];
    assert_eq!(len, 20 + 8 + 5);
    // Version and length, TTL 64 less one for the host and one for the tunnel, UDP, from pod to pod.
    assert_eq!(
        (packet[0], packet[2..4].to_vec(), packet[8], packet[9]),
        (0x45, vec![0, 33], 62, 17)
    );
    let pod = lab.pod_ip(0).octets();
    assert_eq!(packet[12..20], [&pod[..], &[10, 244, 2, 2]].concat());
    assert_eq!(packet[28..], *b"hello");
    let sum = |bytes: &[u8], start: u32| {
        let words = bytes
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
        let sum = words.fold(start, |sum, word| sum + word);
        (sum & 0xffff) + (sum >> 16)
    };
    assert_eq!(sum(&packet[..20], 0), 0xffff, "the header's checksum");
    let pseudo = sum(&packet[12..20], 17 + 13);
    assert_eq!(sum(&packet[20..], pseudo), 0xffff, "the checksum of UDP");
    // As it came from another node: a datagram that was captured, written back by hand.
    let other = [
        0x45, 0, 0, 33, 0xab, 0xcd, 0x40, 0, 62, 17, 0, 0, 10, 244, 2, 2, pod[0], pod[1], pod[2],
        pod[3],
    ];
    let port = from.local_addr().unwrap().port().to_be_bytes();
    let mut datagram = other.to_vec();
    // Without a checksum, which UDP over IPv4 allows.
    datagram.extend([0x1e, 0x61, port[0], port[1], 0, 13, 0, 0]);
    datagram.extend(b"world");
    let header = !(sum(&datagram[..20], 0) as u16);
    datagram[10..12].copy_from_slice(&header.to_be_bytes());
    wire.send_to(&datagram, sender).unwrap();
    let (len, from_pod) = from.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from_pod), (&b"world"[..], "10.244.2.2:7777".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn who_sends_to_nobody_is_told() {
    let lab = Lab::new(&[Kind::Ours, Kind::Nobody]).await;
    let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4));
    let icmp = lab.pods[0].namespace().run(raw).unwrap().unwrap();
    icmp.set_read_timeout(Some(PATIENCE)).unwrap();
    let from = socket(&lab.pods[0]);
    from.send_to(b"hello", "10.244.77.3:7777").unwrap();
    let mut buffer = [0; 256];
    let len = io::Read::read(&mut &icmp, &mut buffer).unwrap();
    // Net unreachable from the device's address, with a TTL of 8 less one for the host.
    assert_eq!(buffer[8], 7);
    assert_eq!(buffer[12..16], [10, 244, 1, 0]);
    assert_eq!(buffer[20..22], [3, 0]);
    assert_eq!(len, 20 + 8 + 20 + 8);
    assert_eq!(buffer[44..48], [10, 244, 77, 3]);
    // It is counted after it was written.
    let deadline = Instant::now() + PATIENCE;
    while lab.nodes[0].as_ref().unwrap().backend.stats().answered != 1 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
    // The kernel's own to groups are among them, which are told nothing.
    assert!(lab.dropped(0, DropReason::NoRoute) >= 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_path_that_is_smaller_than_the_link_is_found() {
    let lab = Lab::new(&[Kind::Ours, Kind::Ours]).await;
    // As the kernel would have it after a router on the way said so.
    let mut ip = std::process::Command::new("ip");
    let to = lab.address(1).to_string();
    ip.args(["route", "replace", &to, "dev", "eth0", "mtu", "lock", "1300"]);
    let status = lab.host(0).namespace().run(move || ip.status()).unwrap().unwrap();
    assert!(status.success());
    let ping = |size| {
        let how = probe::Ping::default().size(size).unfragmented();
        lab.pods[0].ping_with(lab.pod_ip(1).into(), how.timeout(Duration::from_millis(300)))
    };
    assert!(ping(1272).await.is_ok());
    assert!(ping(1273).await.is_err());
    assert!(lab.dropped(0, DropReason::TooBig) > 0);
    // The kernel of the pod has learned of it, and cuts what may be cut.
    assert!(
        lab.pods[0]
            .ping_with(lab.pod_ip(1).into(), probe::Ping::default().size(1400))
            .await
            .is_ok()
    );
    let tcp = probe::tcp_throughput(&lab.pods[0], &lab.pods[1], Duration::from_millis(300))
        .await
        .unwrap();
    assert!(tcp.bits_per_second() > 1e6, "{tcp}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn where_1280_bytes_do_not_fit_ipv6_goes_in_fragments() {
    let world = support::world(support::DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let ips: Vec<_> = world.pod(1).endpoint().ips().collect();
    let ping = |ip, size| {
        let how = probe::Ping::default().size(size).unfragmented().timeout(Duration::from_secs(5));
        world.pod(0).ping_with(ip, how)
    };
    // A path, as the kernel would have it after a router on the way said so.
    let far = world.testbed().host(1);
    for n in 0..2 {
        let (here, there) = (world.testbed().host(n), world.testbed().host(1 - n));
        let to = there.ipv6().unwrap().to_string();
        let mut ip = std::process::Command::new("ip");
        ip.args(["-6", "route", "replace", &to, "dev", "eth0", "mtu", "lock", "1300"]);
        assert!(here.namespace().run(move || ip.status()).unwrap().unwrap().success());
    }
    far.set_path_mtu(1300).await.unwrap();
    ping(ips[1], 1280).await.unwrap();
    ping(ips[1], 1424).await.unwrap_err();
    far.set_path_mtu(1500).await.unwrap();
    // And an uplink.
    for n in 0..2 {
        world.testbed().host(n).set_mtu(1300).await.unwrap();
    }
    let mut kernel = Kernel::of(world.testbed().host(0));
    assert!(nodes.repair(async || kernel.link("flannel0").await.mtu == 1280).await);
    ping(ips[1], 1280).await.unwrap();
    ping(ips[0], 1272).await.unwrap();
}
