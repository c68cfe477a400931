//! Strangers and liars.

use std::{net::Ipv4Addr, time::Duration};

use flannel_backend_udp::DropReason;
use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};

use crate::world::{Cluster, packet, received, socket};

sockopt_impl!(
    /// Sends datagrams without a checksum.
    NoChecksum,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_NO_CHECK,
    bool
);

/// Sends one packet with this inner source to the pod of host 1, from a host; whether it arrived.
fn arrives(cluster: &Cluster, from: usize, source: &str) -> bool {
    let (_, receiver, address) = cluster.sockets(0, 1);
    let outside = socket(cluster.host(from).namespace(), cluster.host(from).ip());
    let source: Ipv4Addr = source.parse().unwrap();
    let packet = packet(source, address, 64, b"hello");
    // As programs send them: what has a checksum is for the socket.
    setsockopt(&outside, NoChecksum, &true).unwrap();
    outside.send_to(&packet, (cluster.host(1).ip(), 8285)).unwrap();
    received(&receiver).is_some()
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn only_a_known_peer_may_send_and_only_from_its_subnet() {
    let mut cluster = Cluster::start(r#","SourceCheck":"subnet""#, &[]).await;
    // Host 1 does not know host 3.
    cluster.nodes.sync_other(1, 3, vec![]).await;
    let before = cluster.stats(1);
    assert!(arrives(&cluster, 0, "10.244.1.7"));
    assert!(arrives(&cluster, 2, "10.244.3.7"));
    assert!(!arrives(&cluster, 0, "10.244.3.7"), "it is host 2's");
    assert!(!arrives(&cluster, 0, "10.244.99.7"), "it is nobody's");
    assert!(!arrives(&cluster, 0, "192.0.2.7"), "it is not of the network");
    assert!(!arrives(&cluster, 3, "10.244.4.7"), "host 3 is not known");
    assert!(!arrives(&cluster, 3, "10.244.1.7"), "host 3 is not known");
    let after = cluster.stats(1);
    let dropped = |reason| after.dropped(reason) - before.dropped(reason);
    assert_eq!(dropped(DropReason::SpoofedSource), 3);
    assert_eq!(dropped(DropReason::UnknownPeer), 2);
    assert_eq!(after.by_ebpf - before.by_ebpf, 2);

    cluster.nodes.sync(1).await;
    assert!(arrives(&cluster, 3, "10.244.4.7"), "host 3 is known now");
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn a_known_peer_may_send_what_it_routes() {
    for userspace in [&[][..], &["host2"]] {
        let mut cluster = Cluster::start("", userspace).await;
        cluster.nodes.sync_other(1, 3, vec![]).await;
        assert!(arrives(&cluster, 0, "192.0.2.7"), "{userspace:?}");
        assert!(arrives(&cluster, 0, "10.244.3.7"), "{userspace:?}");
        assert!(!arrives(&cluster, 3, "10.244.4.7"), "host 3 is not known: {userspace:?}");
        assert_eq!(cluster.stats(1).dropped(DropReason::UnknownPeer), 1, "{userspace:?}");
    }
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn without_the_check_whoever_sends_is_heard() {
    let mut cluster = Cluster::start(r#","SourceCheck":false"#, &[]).await;
    cluster.nodes.sync_other(1, 3, vec![]).await;
    assert!(arrives(&cluster, 0, "10.244.99.7"));
    assert!(arrives(&cluster, 3, "10.244.4.7"));
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn datagrams_to_other_ports_and_addresses_are_nobodys_business() {
    let cluster = Cluster::start("", &[]).await;
    let before = cluster.stats(1);
    let (a, b) = (cluster.host(0), cluster.host(1));
    let (sender, receiver) = (socket(a.namespace(), a.ip()), socket(b.namespace(), b.ip()));
    receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let packet =
        packet("10.244.1.7".parse().unwrap(), "10.244.2.7:9".parse().unwrap(), 64, b"hello");
    sender.send_to(&packet, receiver.local_addr().unwrap()).unwrap();
    assert_eq!(received(&receiver), Some(packet));
    let after = cluster.stats(1);
    assert_eq!((after.by_ebpf, after.received), (before.by_ebpf, before.received));
}
