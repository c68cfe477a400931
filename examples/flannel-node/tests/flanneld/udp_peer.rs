//! The udp backend beside flanneld's, with all that network cards leave undone.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use flannel_testbed::{OFFLOADS, Pod, probe::Exchange};

use super::support::Cluster;

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and the real flanneld: run ./ci.sh flanneld as root"]
async fn tun_all_kinds_of_packets_pass_between_flanneld_and_both_engines_of_udp() {
    let mut failures = Vec::new();
    for engine in ["userspace", "ebpf"] {
        let network = format!(
            r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"udp","Engine":"{engine}"}}}}"#
        );
        let cluster = Cluster::new(2, &network).await;
        let _nodes = (cluster.start_theirs(0).await, cluster.start_ours(1).await);
        let pods = cluster.connected_pods().await;
        let needed = [hops(&pods[0], &pods[1]), hops(&pods[1], &pods[0])];
        // One for each host and one for each end of the tunnel.
        assert_eq!(needed, [Some(5); 2], "{engine}");
        flanneld_takes_a_datagram_of_another_port(&cluster, &pods);
        for offloads in OFFLOADS {
            for host in cluster.testbed.hosts() {
                host.set_offloads(offloads).await.unwrap();
            }
            for (from, to, way) in [(0, 1, "from"), (1, 0, "to")] {
                for (kind, rules) in KINDS {
                    let exchange = prepare(&cluster, &pods, (from, to), rules).await;
                    let mut failed = exchange.all();
                    // Rules that translate ports leave ICMP alone.
                    failed.retain(|why| !rules.contains("dnat") || !why.data.starts_with("ICMP"));
                    failures.extend(failed.into_iter().map(|why| {
                        format!("{engine} {way} flanneld, {kind}, {offloads:?}: {why}")
                    }));
                    // flanneld's own rules count as well.
                    let list = "nft list table ip t; nft flush ruleset";
                    let rules = cluster.shell(from, list).await;
                    if rules.contains("counter packets 0 ") {
                        failures.push(format!("{engine}, {kind}: nothing is translated: {rules}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The smallest TTL with which a datagram arrives.
fn hops(from: &Pod, to: &Pod) -> Option<u32> {
    let bound =
        |pod: &Pod| pod.namespace().run(|| UdpSocket::bind((pod.ip(), 0))).unwrap().unwrap();
    let (from, to) = (bound(from), bound(to));
    to.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    (1..8).find(|ttl| {
        from.set_ttl(*ttl).unwrap();
        from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
        to.recv(&mut [0; 8]).is_ok()
    })
}

/// What the host of a client translates, after the hook.
const KINDS: [(&str, &str); 3] = [
    ("as it is", ""),
    ("masqueraded", "postrouting priority 100; oifname flannel0 counter masquerade fully-random"),
    (
        "node port",
        "prerouting priority -100; meta l4proto { tcp, udp } th dport 30080 meta mark set 0x4000 counter dnat to POD; }
         chain second { type nat hook postrouting priority 100; meta mark 0x4000 counter masquerade fully-random",
    ),
];

/// From one pod to the other, or to its own host's port that leads there.
async fn prepare(
    cluster: &Cluster,
    pods: &[Pod],
    (from, to): (usize, usize),
    rules: &str,
) -> Exchange {
    let mut exchange = Exchange::new(&pods[from], &pods[to]);
    if rules.contains("dnat") {
        exchange.to = (cluster.host(from).ip(), 30080).into();
    }
    if !rules.is_empty() {
        let rules = rules.replace("POD", &exchange.at.to_string());
        let table = format!("table ip t {{ chain first {{ type nat hook {rules}; }}; }}");
        cluster.shell(from, &format!("nft '{table}'")).await;
    }
    exchange
}

/// As programs send them: from a port of the flow's own.
fn flanneld_takes_a_datagram_of_another_port(cluster: &Cluster, pods: &[Pod]) {
    let bound = |at: SocketAddr, pod: &Pod| {
        pod.namespace().run(move || UdpSocket::bind(at)).unwrap().unwrap()
    };
    let to = bound((pods[0].ip(), 7777).into(), &pods[0]);
    to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Length 33, TTL 64, UDP, and a checksum to come; ports, length, and none.
    let mut packet = vec![0x45, 0, 0, 33, 0, 1, 0x40, 0, 64, 17, 0, 0];
    packet.extend([1, 0].iter().flat_map(|n: &usize| pods[*n].ipv4().unwrap().octets()));
    let sum: u32 = packet.chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1])).sum();
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet.extend([0x1e, 0x61, 0x1e, 0x61, 0, 13, 0, 0]);
    packet.extend(b"hello");
    let host = cluster.host(1).namespace();
    let wire = host.run(|| UdpSocket::bind("0.0.0.0:50123")).unwrap().unwrap();
    wire.send_to(&packet, (cluster.host(0).ip(), 8285)).unwrap();
    let mut buffer = [0; 16];
    let (len, _) = to.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"hello");
}
