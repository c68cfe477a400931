//! The udp backend beside flanneld's, with all that network cards leave undone.

use std::{net::UdpSocket, time::Duration};

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
        for offloads in OFFLOADS {
            for host in cluster.testbed.hosts() {
                host.set_offloads(offloads).await.unwrap();
            }
            for (from, to, way) in [(0, 1, "from"), (1, 0, "to")] {
                let failed = Exchange::new(&pods[from], &pods[to]).all();
                let failed = failed
                    .into_iter()
                    .map(|why| format!("{engine} {way} flanneld, {offloads:?}: {why}"));
                failures.extend(failed);
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
