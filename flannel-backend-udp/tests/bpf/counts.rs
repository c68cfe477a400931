//! The packets of each peer are counted alike, whichever engines are at the two ends.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use flannel_core::Backend;
use flannel_testbed::{
    Pod, eventually,
    probe::{Exchange, Ping},
};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use socket2::{Domain, Socket, Type};

use crate::{
    safety::{NoChecksum, packet},
    wire::socket,
    world::{Cluster, run},
};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","SourceCheck":"subnet","Engine":"userspace"}}"#;

/// What one host has counted of another one, by name, without what is 0.
fn counts(
    cluster: &Cluster,
    (host, of): (usize, usize),
    is_ipv4: bool,
) -> BTreeMap<Cow<'static, str>, u64> {
    let of = cluster.host(of);
    let of: IpAddr = if is_ipv4 { of.ipv4().unwrap().into() } else { of.ipv6().unwrap().into() };
    let mut counts = cluster.backend(host).report().peers[&of].clone();
    counts.retain(|_, count| *count > 0);
    counts
}

async fn expect(
    cluster: &Cluster,
    way: (usize, usize),
    is_ipv4: bool,
    expected: &[(&'static str, u64)],
) {
    let expected = expected.iter().map(|(name, count)| (Cow::from(*name), *count)).collect();
    let is_so = || counts(cluster, way, is_ipv4) == expected;
    for _ in 0..200 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(counts(cluster, way, is_ipv4), expected, "{way:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn all_engines_count_alike() {
    for userspace in [&[][..], &["host2"], &["host1", "host2", "host3", "host4"]] {
        let cluster = Cluster::new(CONFIG, userspace).await;
        send(&cluster).await;
        let first = [
            ("bytes_received", 3000),
            ("bytes_sent", 3000 + 10 * 1228 + 128 + 33),
            ("dropped_outbound_too_big", 1),
            ("dropped_outbound_ttl_expired", 1),
            ("packets_received", 3),
            ("packets_sent", 3 + 11 + 1),
        ];
        expect(&cluster, (0, 1), true, &first).await;
        let second = [
            ("bytes_received", 3000 + 10 * 1228 + 128),
            ("bytes_sent", 3000),
            ("dropped_inbound_ttl_expired", 1),
            ("packets_received", 3 + 11),
            ("packets_sent", 3),
        ];
        expect(&cluster, (1, 0), true, &second).await;
        let pings = [
            ("bytes_received", 3000),
            ("bytes_sent", 3000),
            ("packets_received", 3),
            ("packets_sent", 3),
        ];
        expect(&cluster, (0, 1), false, &pings).await;
        expect(&cluster, (1, 0), false, &pings).await;
        expect(&cluster, (0, 2), true, &[("dropped_inbound_spoofed_source", 2)]).await;
        // How a stream is cut is its kernel's to choose. What one end sends is what the other receives.
        for is_ipv4 in [true, false] {
            let mirrored = |name: &str, way| counts(&cluster, way, is_ipv4)[name];
            eventually(async || {
                ["packets", "bytes"].iter().all(|what| {
                    [(0, 3), (3, 0)].iter().all(|(from, to)| {
                        mirrored(&format!("{what}_sent"), (*from, *to))
                            == mirrored(&format!("{what}_received"), (*to, *from))
                    })
                })
            })
            .await;
            // Headers of IP, and of TCP with a timestamp. Some have more options, and on a busy machine some packets are sent again.
            let headers = if is_ipv4 { 52 } else { 72 };
            let sent = |what: &str| mirrored(&format!("{what}_sent"), (0, 3));
            let data = (sent("bytes") - sent("packets") * headers).checked_sub(3 << 20);
            let again = sent_again(cluster.world.pod(0));
            let most = 10_000 + again * 1500;
            assert!(data.is_some_and(|more| more < most), "{userspace:?}: {data:?}, {again} again");
        }
        let stats = cluster.stats(0);
        let sent: u64 = stats.peers.values().map(|peer| peer.packets_sent).sum();
        let received: u64 = stats.peers.values().map(|peer| peer.packets_received).sum();
        assert_eq!((sent, received), (stats.sent.packets, stats.received.packets));
        assert_eq!(stats.by_ebpf > 2000, userspace.len() < 4, "{userspace:?}: {}", stats.by_ebpf);
    }
}

/// How many segments of TCP a pod has sent more than once.
fn sent_again(pod: &Pod) -> u64 {
    let text = run(pod.namespace(), "cat /proc/net/snmp");
    let mut tcp = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let named = |(name, _): &(&str, &str)| *name == "RetransSegs";
    names.zip(values).find(named).unwrap().1.parse().unwrap()
}

/// Sends what has an expected count, most of it from the first host to the second.
async fn send(cluster: &Cluster) {
    let (pod, other) = (cluster.world.pod(0), cluster.world.pod(1));
    for to in other.endpoint().ips() {
        for _ in 0..3 {
            pod.ping_with(to, Ping::default().size(1000)).await.unwrap();
        }
        let last = cluster.world.pod(3);
        let to = last.endpoint().ips().find(|ip| ip.is_ipv4() == to.is_ipv4()).unwrap();
        let stream =
            Exchange { to: (to, 7000).into(), at: (to, 7000).into(), ..Exchange::new(pod, last) };
        stream.tcp().unwrap();
    }
    let (from, to) = (socket(pod), socket(other));
    // Datagrams that are sent as one, and two that run out of hops: here and there.
    setsockopt(&from, UdpGsoSegment, &1200).unwrap();
    from.send_to(&[7; 10 * 1200 + 100], to.local_addr().unwrap()).unwrap();
    for _ in 0..11 {
        to.recv_from(&mut [0; 1500]).unwrap();
    }
    for ttl in [2, 3] {
        from.set_ttl(ttl).unwrap();
        from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
    }
    // As the kernel would have it after a router on the way said so.
    let address = cluster.host(1).ipv4().unwrap();
    cluster.run(0, &format!("ip route replace {address} dev eth0 mtu lock 1300"));
    let whole = Ping::default().size(1400).unfragmented().timeout(Duration::from_millis(200));
    pod.ping_with(other.ip(), whole).await.unwrap_err();
    // The third host in the name of the second, as programs and as threads send.
    for unsummed in [true, false] {
        let own = SocketAddr::new(cluster.host(2).ipv4().unwrap().into(), 0);
        let open = || Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let socket = cluster.host(2).namespace().run(open).unwrap();
        socket.bind(&own.into()).unwrap();
        setsockopt(&socket, NoChecksum, &unsummed).unwrap();
        let spoofed = packet([10, 244, 2, 2], pod.ipv4().unwrap().octets());
        let first = SocketAddr::new(cluster.host(0).ipv4().unwrap().into(), 8285);
        socket.send_to(&spoofed, &first.into()).unwrap();
    }
}
