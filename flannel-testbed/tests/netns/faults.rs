use flannel_netlink::state::{IpFamily, Route};
use flannel_testbed::{
    Testbed,
    probe::{Ping, stream},
};
use futures::FutureExt as _;
use tokio::time::timeout;

use super::support::{MS, SECOND, blocks, connected, routed_pods, subnet, two_routed_pods, until};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_partition_cuts_and_healing_mends() {
    let testbed = routed_pods(4).await;
    let [a, b, c, d] = testbed.hosts() else { unreachable!() };
    let before = a.snapshot().await.unwrap();
    testbed.separate([a, b]).await.unwrap();
    testbed.separate([c]).await.unwrap();
    let table = testbed.reachability().await;
    let reached = |from: &str, to: &str| {
        !table.unreachable().any(|pair| pair.from.starts_with(from) && pair.to.starts_with(to))
    };
    for (from, to, expected) in [
        (a, b, true),
        (b, a, true),
        (a, c, false),
        (c, a, false),
        (a, d, false),
        (c, d, false),
        (d, b, false),
        (d, d, true),
    ] {
        assert_eq!(
            reached(from.name(), to.name()),
            expected,
            "{} to {}:\n{table}",
            from.name(),
            to.name()
        );
    }
    assert_eq!(a.snapshot().await.unwrap(), before, "a host sees nothing of it");
    testbed.heal().await.unwrap();
    let table = testbed.reachability().await;
    assert!(table.complete(), "{table}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_network_card_put_in_during_a_partition_is_on_its_side() {
    let testbed = Testbed::new(2).await.unwrap();
    let (one, two) = (testbed.host(0), testbed.host(1));
    testbed.separate([one]).await.unwrap();
    one.delete_uplink().await.unwrap();
    one.create_uplink().await.unwrap();
    assert!(one.ping(two.ip()).await.is_err());
    testbed.heal().await.unwrap();
    one.ping(two.ip()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn loss_is_near_what_was_asked() {
    let (testbed, one, two) = two_routed_pods().await;
    // The hosts know each other's Ethernet address already: a lost question for it would cost a second.
    one.ping(two.ip()).await.unwrap();
    testbed.host(1).set_loss(0.5, 42).await.unwrap();
    let probes = stream(&one, two.ip(), 50).unwrap();
    until("300 probes are sent", async || probes.report().sent >= 300).await;
    let report = probes.stop().await;
    let lost = report.lost as f64 / report.sent as f64;
    // Four standard deviations of 300 trials.
    assert!((lost - 0.5).abs() < 0.12, "{report}");

    testbed.host(1).set_loss(1.0, 42).await.unwrap();
    until("nothing goes through", async || {
        one.ping_with(two.ip(), Ping::default().timeout(50 * MS)).await.is_err()
    })
    .await;
    testbed.host(1).set_loss(0.0, 42).await.unwrap();
    let probes = stream(&one, two.ip(), 200).unwrap();
    until("100 probes are sent", async || probes.report().sent >= 100).await;
    let report = probes.stop().await;
    assert_eq!((report.lost, report.received), (0, report.sent), "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_link_that_flaps_loses_its_routes_and_gets_its_addresses_back() {
    let (testbed, one, two) = two_routed_pods().await;
    let host = testbed.host(0);
    let before = host.snapshot().await.unwrap();
    host.link_down().await.unwrap();
    assert!(host.ping(testbed.host(1).ip()).await.is_err());
    host.link_up().await.unwrap();
    let lost = before.difference(&host.snapshot().await.unwrap());
    assert!(
        lost.iter().all(|line| line.starts_with("- route 10.244.1.0/24")
            || line.starts_with("- route fd00:244:1::/64")),
        "{lost:#?}"
    );
    assert_eq!(lost.len(), 2, "{lost:#?}");
    for ip in testbed.host(1).endpoint().ips() {
        host.ping(ip).await.unwrap();
    }
    assert!(one.ping(two.ip()).await.is_err());
    host.add_route(subnet(1), testbed.host(1)).await.unwrap();
    assert!(connected(&one, &two).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_cable_that_is_pulled_leaves_the_routes() {
    let (testbed, one, two) = two_routed_pods().await;
    let host = testbed.host(0);
    let before = host.snapshot().await.unwrap();
    let probes = stream(&one, two.ip(), 50).unwrap();
    timeout(SECOND, probes.flowing()).await.unwrap();
    host.unplug().await.unwrap();
    assert!(timeout(300 * MS, probes.flowing()).await.is_err());
    assert_eq!(host.snapshot().await.unwrap(), before);
    host.plug().await.unwrap();
    timeout(5 * SECOND, probes.flowing()).await.unwrap();
    let report = probes.stop().await;
    // Some are not lost but late: the kernel keeps packets while it looks for the neighbour again.
    assert!(report.longest_gap >= 300 * MS, "{report}");
    assert_eq!(report.sent, report.received + report.lost, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_network_card_comes_back_as_it_was() {
    let testbed = Testbed::new(2).await.unwrap();
    let (one, two) = (testbed.host(0), testbed.host(1));
    let before = one.snapshot().await.unwrap();
    one.delete_uplink().await.unwrap();
    one.delete_uplink().await.unwrap();
    let gone = one.snapshot().await.unwrap().to_string();
    assert!(!gone.contains("eth0") && !gone.contains("192.0.2."), "{gone}");
    one.create_uplink().await.unwrap();
    let changed = before.difference(&one.snapshot().await.unwrap());
    assert!(changed.iter().all(|line| line[2..].starts_with("device eth0 index")), "{changed:#?}");
    assert_eq!(changed.len(), 2, "only the index is another: {changed:#?}");
    one.ping(two.ip()).await.unwrap();
    two.ping(one.ip()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_host_may_get_another_address() {
    let testbed = Testbed::builder(2).default_route().build().await.unwrap();
    let (one, two) = (testbed.host(0), testbed.host(1));
    let old = one.ip();
    let new = ["192.0.2.77/24".parse().unwrap(), "2001:db8::77/64".parse().unwrap()];
    one.delete_uplink().await.unwrap();
    one.set_addresses(new).await.unwrap();
    one.create_uplink().await.unwrap();
    assert_eq!(one.ip().to_string(), "192.0.2.77");
    for ip in one.endpoint().ips() {
        two.ping(ip).await.unwrap();
    }
    assert!(two.ping(old).await.is_err());

    one.set_addresses(["192.0.2.78/24".parse().unwrap()]).await.unwrap();
    two.ping(one.ip()).await.unwrap();
    let now = one.snapshot().await.unwrap().to_string();
    assert!(!now.contains("192.0.2.77") && !now.contains("2001:db8::77"), "{now}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_meddler_does_its_deed_again_and_again() {
    let (testbed, one, two) = two_routed_pods().await;
    let host = testbed.host(0);
    let mut connection = host.connect().unwrap();
    let routes = flannel_netlink::list_routes(&mut connection, Route::MAIN, IpFamily::V4).await;
    let victim = blocks("10.244.1.0/24").iter().next().unwrap();
    let route = routes.unwrap().into_iter().find(|route| route.destination == victim).unwrap();
    let meddler = host
        .meddle(10 * MS, move |connection| connection.apply_one(route.delete()).boxed())
        .unwrap();
    until("it has deleted the route three times", async || {
        host.add_route(subnet(1), testbed.host(1)).await.unwrap();
        meddler.deeds() >= 3
    })
    .await;
    drop(meddler);
    host.add_route(subnet(1), testbed.host(1)).await.unwrap();
    assert!(connected(&one, &two).await);
}
