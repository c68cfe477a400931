//! What must not get through.

use std::net::{SocketAddr, UdpSocket};

use flannel_backend_udp::{DropReason, Engine};
use tokio::time::Instant;

use crate::{
    lab::{Kind, Lab},
    support,
};

/// A UDP packet from `from` to the pod of host 0, without a UDP checksum.
fn packet(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 33, 0, 0, 0x40, 0, 62, 17, 0, 0];
    packet.extend(from);
    packet.extend(to);
    let sum: u32 = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x1e, 0x61, 0x1e, 0x61, 0, 13, 0, 0]);
    packet.extend(b"hello");
    packet
}

/// A socket on a host, and where to reach the engine of host 0.
fn sender(lab: &Lab, host: usize) -> (UdpSocket, SocketAddr) {
    let own = SocketAddr::new(lab.address(host).into(), 0);
    let socket = lab.host(host).namespace().run(|| UdpSocket::bind(own)).unwrap().unwrap();
    (socket, SocketAddr::new(lab.address(0).into(), 8285))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn strangers_and_false_sources_are_dropped_and_counted() {
    let kinds = [Kind::Ours, Kind::Nobody, Kind::Nobody];
    let strict = support::IPV4.replace(r#""Engine""#, r#""SourceCheck":"subnet","Engine""#);
    let mut lab = Lab::configured(&kinds, &strict, |_, udp| udp).await;
    let known = vec![lab.leases[1].clone()];
    let peers = lab.peers_of(0, known);
    lab.node(0).network.sync(&peers).await.unwrap();
    let pod = lab.pod_ip(0).octets();
    let inbox = lab.pods[0].namespace().run(|| UdpSocket::bind("0.0.0.0:7777")).unwrap().unwrap();
    inbox.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64];

    let (stranger, engine) = sender(&lab, 2);
    stranger.send_to(&packet([10, 244, 2, 2], pod), engine).unwrap();
    lab.expect_dropped(0, DropReason::UnknownPeer, 1).await;
    let (peer, engine) = sender(&lab, 1);
    peer.send_to(&packet([10, 244, 3, 2], pod), engine).unwrap();
    peer.send_to(&packet([8, 8, 8, 8], pod), engine).unwrap();
    peer.send_to(&packet([10, 244, 1, 2], pod), engine).unwrap();
    lab.expect_dropped(0, DropReason::SpoofedSource, 3).await;
    assert!(inbox.recv_from(&mut buffer).is_err());

    let good = packet([10, 244, 2, 2], pod);
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    for (datagram, reason) in [
        (vec![], DropReason::Truncated),
        (good[..19].to_vec(), DropReason::Truncated),
        (with(0, 0x55), DropReason::Version),
        (with(0, 0x44), DropReason::HeaderLength),
        ([&good[..], b"x"].concat(), DropReason::Oversized),
        (with(8, 1), DropReason::TtlExpired),
        (with(0, 0x47), DropReason::SourceRoute),
    ] {
        let before = lab.dropped(0, reason);
        peer.send_to(&datagram, engine).unwrap();
        lab.expect_dropped(0, reason, before + 1).await;
    }
    assert!(inbox.recv_from(&mut buffer).is_err());

    peer.send_to(&good, engine).unwrap();
    inbox.set_nonblocking(false).unwrap();
    inbox.set_read_timeout(Some(crate::lab::PATIENCE)).unwrap();
    let (_, from) = inbox.recv_from(&mut buffer).unwrap();
    assert_eq!(from, "10.244.2.2:7777".parse().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn the_check_of_sources_can_be_switched_off() {
    let lab = Lab::with(&[Kind::Ours, Kind::Nobody], |_, udp| udp).await;
    let host = lab.host(0);
    let json = support::IPV4.replace("\"Type\"", "\"SourceCheck\":false,\"Type\"");
    let config = json.parse().unwrap();
    let backend = support::udp(host, &config);
    let mut network = flannel_core::Backend::start(&backend, &lab.leases[0]).await.unwrap();
    network.sync(&lab.peers(0)).await.unwrap();
    let inbox = lab.pods[0].namespace().run(|| UdpSocket::bind("0.0.0.0:7777")).unwrap().unwrap();
    inbox.set_read_timeout(Some(crate::lab::PATIENCE / 4)).unwrap();
    let (peer, engine) = sender(&lab, 1);
    let forged = packet([10, 244, 9, 9], lab.pod_ip(0).octets());
    // The engine before this one checks, and may have the first in its queue.
    let received = (0..4).find_map(|_| {
        peer.send_to(&forged, engine).unwrap();
        inbox.recv_from(&mut [0; 64]).ok()
    });
    let (_, from) = received.expect("a packet");
    assert_eq!(from, "10.244.9.9:7777".parse().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn the_engine_and_what_it_uses_can_be_read() {
    let lab = Lab::new(&[Kind::Ours, Kind::Ours]).await;
    assert!(lab.reaches(0, 1).await);
    let stats = lab.nodes[0].as_ref().unwrap().backend.stats();
    let Some(Engine::Userspace(features)) = &stats.engine else { panic!("{stats:?}") };
    assert!(features.tun_tcp && features.udp_segment && features.udp_gro, "{features:?}");
    assert_eq!(features.tun_udp, features.missing.is_empty(), "{features:?}");
    assert!(stats.sent.packets > 0, "{stats:?}");
    // The answer is with the pod a moment before it is counted.
    let deadline = Instant::now() + crate::lab::PATIENCE;
    while lab.nodes[0].as_ref().unwrap().backend.stats().received.packets == 0 {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_peer_may_use_a_port_of_its_own() {
    let lab = Lab::with(&[Kind::Ours, Kind::Ours], |n, udp| match n {
        0 => udp,
        _ => udp.with_port(9000),
    })
    .await;
    assert_eq!(lab.leases[1].attrs.backend_data.as_ref().unwrap().as_str(), r#"{"Port":9000}"#);
    assert_eq!(lab.leases[1].attrs.backend_type, "");
    assert_eq!(lab.leases[0].attrs.backend_data, None);
    assert!(lab.reaches(0, 1).await);
}
