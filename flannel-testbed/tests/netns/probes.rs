use std::net::IpAddr;

use flannel_testbed::{
    Testbed,
    probe::{PingError, flow, stream, streams_both_ways, tcp_throughput},
};
use ipnetwork::IpNetwork;
use tokio::time::timeout;

use super::support::{MS, SECOND, blocks, routed_pods, two_routed_pods, until};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_pong_says_how_long_it_took_and_who_was_seen() {
    let (testbed, one, two) = two_routed_pods().await;
    for (from, to) in one.endpoint().ips().zip(two.endpoint().ips()) {
        let pong = one.ping(to).await.unwrap();
        assert!(pong.round_trip < 500 * MS, "{pong:?}");
        assert_eq!(pong.seen_as, from, "nobody translates");
    }
    let pong = testbed.host(0).ping(testbed.host(1).ip()).await.unwrap();
    assert_eq!(pong.seen_as, testbed.host(0).ip());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_ping_into_the_void_is_lost() {
    let (_testbed, one, _) = two_routed_pods().await;
    let error = one.ping("10.244.1.99".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, PingError::Lost { .. }), "{error}");
    assert_eq!(error.to_string(), "no answer to a ping from host1/pod1 to 10.244.1.99 within 1s");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_stream_counts_an_outage() {
    let (testbed, one, two) = two_routed_pods().await;
    let probes = stream(&one, two.ipv6().unwrap().into(), 100).unwrap();
    until("50 answers", async || probes.report().received >= 50).await;
    let calm = probes.report();
    assert_eq!(calm.lost, 0, "{calm}");
    assert!(calm.longest_gap < 200 * MS, "{calm}");
    testbed.separate([testbed.host(0)]).await.unwrap();
    until("half a second of silence", async || probes.report().longest_gap > 500 * MS).await;
    testbed.heal().await.unwrap();
    timeout(2 * SECOND, probes.flowing()).await.unwrap();
    let report = probes.stop().await;
    assert!(report.longest_gap > 500 * MS, "{report}");
    assert!((30..100).contains(&report.lost), "{report}");
    assert_eq!(report.sent, report.received + report.lost, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_one_of_several_streams_loses_is_lost() {
    let (testbed, one, two) = two_routed_pods().await;
    let probes = streams_both_ways(&one, &two, 100).unwrap();
    timeout(SECOND, probes.flowing()).await.unwrap();
    let ipv6 = two.endpoint().ips().find(IpAddr::is_ipv6).unwrap();
    let block = IpNetwork::new(ipv6, 64).unwrap();
    assert_eq!(testbed.host(0).delete_route(block).await.unwrap(), 1);
    // There and back lead through the route, for the streams of one family.
    timeout(300 * MS, probes.flowing()).await.unwrap_err();
    let report = probes.stop().await;
    assert!(report.lost > 20 && report.received > 2 * 25, "{report}");
    assert_eq!(report.sent, report.received + report.lost, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_stream_without_a_route_loses_everything() {
    let testbed = Testbed::new(1).await.unwrap();
    let probes = stream(testbed.host(0), "203.0.113.1".parse().unwrap(), 100).unwrap();
    until("5 probes are due", async || probes.report().sent >= 5).await;
    let report = probes.stop().await;
    assert_eq!((report.received, report.lost), (0, report.sent), "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn bulk_transfer_moves_data() {
    let testbed = routed_pods(2).await;
    let pods = testbed.pods();
    let moved = tcp_throughput(&pods[0], &pods[1], 300 * MS).await.unwrap();
    println!("{moved} between pods of two hosts");
    assert!(moved.bytes > 1 << 20, "{moved:?}");
    assert!(moved.elapsed >= 300 * MS, "{moved:?}");

    let alone = Testbed::new(1).await.unwrap();
    let v4 = alone.host(0).add_pod(blocks("10.244.0.0/24")).await.unwrap();
    let v6 = alone.host(0).add_pod(blocks("fd00:244::/64")).await.unwrap();
    let error = tcp_throughput(&v4, &v6, MS).await.unwrap_err();
    assert_eq!(error.to_string(), "host1/pod1 and host1/pod2 have no address family in common");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_flow_counts_its_rounds_and_notices_a_gap() {
    let (testbed, one, two) = two_routed_pods().await;
    let flow = flow(&one, &two).await.unwrap();
    until("it flows", async || flow.rounds() > 100).await;
    testbed.host(0).unplug().await.unwrap();
    tokio::time::sleep(300 * MS).await;
    testbed.host(0).plug().await.unwrap();
    let after = flow.rounds();
    until("it flows again", async || flow.rounds() > after + 100).await;
    let longest = flow.stop().await.unwrap();
    assert!(longest > 250 * MS, "{longest:?}");
}
