//! What must not get through.

use std::net::{SocketAddr, UdpSocket};

use flannel_backend_udp::DropReason;
use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use tokio::time::Instant;

use crate::{
    lab::{Kind, Lab},
    support,
};

sockopt_impl!(
    /// Sends datagrams without a checksum.
    NoChecksum,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_NO_CHECK,
    bool
);

/// A UDP packet from `from` to the pod of host 0, without a UDP checksum.
pub(crate) fn packet(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
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

/// A socket on a host that sends to the engine of host 0, as programs do: what has a checksum is for the engine's threads.
fn sender(lab: &Lab, host: usize) -> UdpSocket {
    let own = SocketAddr::new(lab.address(host).into(), 0);
    let socket = lab.host(host).namespace().run(|| UdpSocket::bind(own)).unwrap().unwrap();
    setsockopt(&socket, NoChecksum, &true).unwrap();
    socket.connect((lab.address(0), 8285)).unwrap();
    socket
}

/// Where packets to the pod of host 0 arrive.
fn inbox(lab: &Lab) -> UdpSocket {
    let bind = || UdpSocket::bind("0.0.0.0:7777");
    let inbox = lab.pods[0].namespace().run(bind).unwrap().unwrap();
    inbox.set_read_timeout(Some(crate::lab::PATIENCE)).unwrap();
    inbox
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn sources_are_checked_as_much_as_is_asked() {
    let [spoofed, unknown] = [DropReason::SpoofedSource, DropReason::UnknownPeer].map(Some);
    // A peer's own, another's and nobody's source from the peer, and a source of a peer from who is none.
    let sources =
        [(1, [10, 244, 2, 2]), (1, [10, 244, 3, 2]), (1, [192, 0, 2, 7]), (2, [10, 244, 2, 2])];
    for (check, reasons) in [
        (r#""subnet""#, [None, spoofed, spoofed, unknown]),
        ("true", [None, spoofed, spoofed, unknown]),
        (r#""peer""#, [None, None, None, unknown]),
        ("false", [None; 4]),
    ] {
        let config = format!(r#""SourceCheck":{check},"Engine""#);
        let config = support::IPV4.replace(r#""Engine""#, &config);
        let kinds = [Kind::Ours, Kind::Nobody, Kind::Nobody];
        let mut lab = Lab::configured(&kinds, &config, |_, udp| udp).await;
        let peers = lab.peers_of(0, vec![lab.leases[1].clone()]);
        lab.node(0).network.sync(&peers).await.unwrap();
        let inbox = inbox(&lab);
        let (mut dropped, mut received) = ([0; DropReason::ALL.len()], 0);
        for ((host, source), reason) in sources.into_iter().zip(reasons) {
            sender(&lab, host).send(&packet(source, lab.pod_ip(0).octets())).unwrap();
            if let Some(reason) = reason {
                dropped[reason as usize] += 1;
                lab.expect_dropped(0, reason, dropped[reason as usize]).await;
                continue;
            }
            received += 1;
            let (_, from) = inbox.recv_from(&mut [0; 64]).unwrap();
            assert_eq!(from, SocketAddr::from((source, 7777)), "{check}");
        }
        inbox.set_nonblocking(true).unwrap();
        assert!(inbox.recv_from(&mut [0; 64]).is_err(), "{check}");
        for reason in [spoofed, unknown].into_iter().flatten() {
            assert_eq!(lab.dropped(0, reason), dropped[reason as usize], "{check}");
        }
        let by_ebpf = lab.nodes[0].as_ref().unwrap().backend.stats().by_ebpf;
        assert_eq!(by_ebpf, if crate::ENGINE == "ebpf" { received } else { 0 }, "{check}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn what_is_no_packet_is_dropped_and_counted() {
    let lab = Lab::new(&[Kind::Ours, Kind::Nobody]).await;
    let (peer, inbox) = (sender(&lab, 1), inbox(&lab));
    let good = packet([10, 244, 2, 2], lab.pod_ip(0).octets());
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
        peer.send(&datagram).unwrap();
        lab.expect_dropped(0, reason, before + 1).await;
    }
    peer.send(&good).unwrap();
    let (_, from) = inbox.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(from, "10.244.2.2:7777".parse().unwrap(), "the first that arrives");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn the_engine_and_what_it_uses_can_be_read() {
    let lab = Lab::new(&[Kind::Ours, Kind::Ours]).await;
    assert!(lab.reaches(0, 1).await);
    let stats = lab.nodes[0].as_ref().unwrap().backend.stats();
    let engine = stats.engine.as_ref().unwrap();
    let features = engine.features();
    assert_eq!(engine.name(), crate::ENGINE);
    assert!(features.tun_tcp && features.udp_segment, "{features:?}");
    // Programs do not take apart what the kernel has joined.
    assert_eq!(features.udp_gro, engine.name() == "userspace");
    assert_eq!(features.tun_udp && features.udp_gro, features.missing.is_empty(), "{features:?}");
    // Both are with the pods a moment before they are counted.
    let counted = || {
        let stats = lab.nodes[0].as_ref().unwrap().backend.stats();
        stats.sent.packets > 0 && stats.received.packets > 0
    };
    let deadline = Instant::now() + crate::lab::PATIENCE;
    while !counted() {
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
    let published = |n: usize| lab.leases[n].attrs.backend_data.as_ref().map(|data| data.as_str());
    assert!(published(1).unwrap().contains(r#""Port":9000"#));
    assert!(published(0).is_none_or(|data| !data.contains("Port")));
    assert_eq!(lab.leases[1].attrs.backend_type, "");
    assert!(lab.reaches(0, 1).await);
}
