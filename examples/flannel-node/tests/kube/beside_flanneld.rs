//! The real flanneld and this program follow each other, and take each other's hosts over.

use std::time::Duration;

use flannel_testbed::{probe, soon};
use tokio::time::sleep;

use crate::cluster::{Cluster, eventually, ipv4};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_vxlan() {
    beside_flanneld(&ipv4("vxlan"), 1).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_dual_stack_vxlan() {
    let network = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
    beside_flanneld(network, 2).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_host_gw() {
    beside_flanneld(&ipv4("host-gw"), 1).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_dual_stack_host_gw() {
    let network = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#;
    beside_flanneld(network, 2).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_ipv6_only_vxlan() {
    let network = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
    beside_flanneld(network, 1).await;
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and the real flanneld: run ./ci.sh kube as root"]
async fn tun_both_programs_share_a_cluster_and_follow_each_other_by_udp() {
    // The other engine writes its name, which flanneld does not.
    let network = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Engine":"userspace"}}"#;
    beside_flanneld(network, 1).await;
}

/// Ours on host 0 and flanneld on host 1; then each takes the other's host over. Whoever comes finds nothing to write.
async fn beside_flanneld(network: &str, families: usize) {
    let cluster = Cluster::new(2, network).await;
    let mut ours = cluster.start_ours(0).await;
    let mut theirs = cluster.start_theirs(1).await;
    let pods = cluster.connected_pods().await;
    eventually("both tell their condition", async || {
        cluster.condition(0).is_some() && cluster.condition(1).is_some()
    })
    .await;
    let without_times = |n| {
        let mut condition = cluster.condition(n).unwrap();
        let times = ["lastHeartbeatTime", "lastTransitionTime"].map(|it| condition[it].take());
        assert!(times.iter().all(|it| it.as_str().unwrap().ends_with('Z')), "{times:?}");
        condition
    };
    assert_eq!(without_times(0), without_times(1));
    let names = |n| cluster.annotations(n).into_keys().collect::<Vec<_>>();
    assert_eq!((names(0), names(0).len()), (names(1), 2 + 2 * families));
    let written = [cluster.annotations(0), cluster.annotations(1)];
    // By all families that there are, in both directions.
    let mut streams = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        for ip in pods[to].endpoint().ips() {
            streams.push((ip.is_ipv6(), probe::stream(&pods[from], ip, 50).unwrap()));
        }
    }
    theirs.process().terminate().unwrap();
    theirs.process().wait().await.unwrap();
    cluster.writes();
    let _ours = cluster.start_ours(1).await;
    // Long enough for a condition to be told.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.writes(), [""; 0], "what flanneld wrote is what we would have written");
    ours.terminate().unwrap();
    ours.wait().await.unwrap();
    let _theirs = cluster.start_theirs(0).await;
    sleep(Duration::from_secs(2)).await;
    // flanneld tells its condition at each start.
    let writes = cluster.writes();
    assert!(writes.iter().all(|body| !body.contains("annotations")), "{writes:?}");
    assert_eq!([cluster.annotations(0), cluster.annotations(1)], written);
    for (is_ipv6, stream) in streams {
        soon(stream.flowing()).await;
        let report = stream.stop().await;
        // An IPv6 route that flanneld made is replaced by deleting it first, and the packets of udp pass through the daemons.
        assert!(is_ipv6 || network.contains("udp") || report.lost == 0, "{report}");
    }
}
