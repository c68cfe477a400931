use flannel_netlink::{Connection, Namespace, list_links};
use flannel_testbed::{
    Testbed, TestbedError,
    probe::{Ping, PingError, reachability},
};
use tokio::time::Instant;

use super::support::{blocks, connected, routed_pods, subnet, two_routed_pods, until};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn routed_pods_reach_each_other() {
    let testbed = routed_pods(3).await;
    let table = testbed.reachability().await;
    assert!(table.complete(), "{table}");
    assert_eq!(table.probed(), 18, "three by three in two families");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn pods_without_a_route_do_not() {
    let (testbed, one, two) = two_routed_pods().await;
    assert_eq!(testbed.host(0).delete_route(blocks("10.244.1.0/24")).await.unwrap(), 1);
    let table = testbed.reachability().await;
    let lost: Vec<_> = table.unreachable().map(|pair| pair.to_string()).collect();
    let expected = [
        "host1/pod1 does not reach host2/pod1 over IPv4",
        "host2/pod1 does not reach host1/pod1 over IPv4",
    ];
    assert_eq!(lost, expected);
    assert!(one.ping(two.ipv6().unwrap().into()).await.is_ok());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn pods_of_one_host_share_a_subnet() {
    let testbed = Testbed::new(1).await.unwrap();
    let host = testbed.host(0);
    let one = host.add_pod(subnet(0)).await.unwrap();
    let two = host.add_pod(subnet(0)).await.unwrap();
    assert_eq!(one.endpoint().addresses()[0].to_string(), "10.244.0.2/24");
    assert_eq!(two.endpoint().addresses()[1].to_string(), "fd00:244::3/64");
    assert!(connected(&one, &two).await);
    one.ping("10.244.0.1".parse().unwrap()).await.unwrap();
    one.ping(host.ip()).await.unwrap();
    host.ping(two.ip()).await.unwrap();

    host.remove_pod(&one).await.unwrap();
    assert!(two.ping(one.ip()).await.is_err());
    let three = host.add_pod(subnet(0)).await.unwrap();
    assert_eq!(three.ip(), one.ip(), "the lowest free address");
    host.remove_pod(&two).await.unwrap();
    host.remove_pod(&three).await.unwrap();
    let left = host.snapshot().await.unwrap().to_string();
    assert!(!left.contains("cni0") && !left.contains("10.244."), "{left}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_full_subnet_says_so() {
    let testbed = Testbed::new(1).await.unwrap();
    let host = testbed.host(0);
    host.add_pod(blocks("10.244.0.0/30")).await.unwrap();
    let error = host.add_pod(blocks("10.244.0.0/30")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot give host1/pod2 an address: number 3 is not in 10.244.0.0/30"
    );
    let error = Testbed::builder(2).underlay(blocks("192.0.2.0/30")).build().await.unwrap_err();
    assert!(matches!(error, TestbedError::AddressesExhausted { number: 2, .. }), "{error}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn each_family_works_alone() {
    for (underlay, v4) in [("198.51.100.0/24", true), ("2001:db8:1::/64", false)] {
        let testbed = Testbed::builder(2).underlay(blocks(underlay)).build().await.unwrap();
        let [one, two] = testbed.hosts() else { unreachable!() };
        assert_eq!((one.ipv4().is_some(), one.ipv6().is_some()), (v4, !v4));
        one.ping(two.ip()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_default_route_leads_to_the_switch() {
    let elsewhere = "203.0.113.1".parse().unwrap();
    let testbed = Testbed::builder(1).default_route().build().await.unwrap();
    let routes = testbed.host(0).snapshot().await.unwrap().to_string();
    for route in
        ["route 0.0.0.0/0 via 192.0.2.254 dev eth0", "route ::/0 via 2001:db8::fe dev eth0"]
    {
        assert!(routes.contains(route), "{routes}");
    }
    let error = testbed.host(0).ping(elsewhere).await.unwrap_err();
    assert!(matches!(error, PingError::Lost { .. }), "sent, and nobody there: {error}");
    let without = Testbed::new(1).await.unwrap();
    let error = without.host(0).ping(elsewhere).await.unwrap_err();
    assert!(matches!(error, PingError::NotSent { .. }), "{error}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_mtu_is_the_one_asked_for() {
    let testbed = Testbed::builder(2).mtu(1400).build().await.unwrap();
    let (one, two) = (testbed.host(0), testbed.host(1));
    let pod_one = one.add_pod(subnet(0)).await.unwrap();
    let pod_two = two.add_pod_with_mtu(subnet(1), 1300).await.unwrap();
    one.add_route(subnet(1), two).await.unwrap();
    two.add_route(subnet(0), one).await.unwrap();
    for to in two.endpoint().ips() {
        let whole = Ping::default().unfragmented();
        pod_one.ping_with(to, whole.size(1400)).await.unwrap();
        let error = pod_one.ping_with(to, whole.size(1401)).await.unwrap_err();
        assert!(matches!(error, PingError::TooBig { .. }), "{error}");
        pod_one.ping_with(to, Ping::default().size(4000)).await.unwrap();
    }
    for to in pod_two.endpoint().ips() {
        let whole = Ping::default().unfragmented().timeout(super::support::MS * 300);
        pod_one.ping_with(to, whole.size(1300)).await.unwrap();
        // The first is dropped on the way, which is how the sender learns.
        let error = pod_one.ping_with(to, whole.size(1301)).await.unwrap_err();
        assert!(matches!(error, PingError::Lost { .. }), "{error}");
        let error = pod_one.ping_with(to, whole.size(1301)).await.unwrap_err();
        assert!(matches!(error, PingError::TooBig { .. }), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn fifty_hosts_reach_each_other() {
    let start = Instant::now();
    let testbed = Testbed::new(50).await.unwrap();
    let built = start.elapsed();
    for host in testbed.hosts() {
        host.add_pod(subnet(1)).await.unwrap();
    }
    println!("50 hosts in {built:?}, with a pod each in {:?}", start.elapsed());
    let table = reachability(testbed.hosts()).await;
    assert!(table.complete(), "{table}");
    assert_eq!(table.probed(), 5000);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_peer_may_be_an_address_only() {
    let testbed = Testbed::builder(2).underlay(blocks("198.18.0.0/15")).build().await.unwrap();
    let more = (0..500_u32).map(|n| format!("198.18.{}.{}/15", 1 + n / 250, 1 + n % 250));
    testbed.host(1).add_addresses(more.map(|text| text.parse().unwrap())).await.unwrap();
    for peer in ["198.18.1.1", "198.18.2.250"] {
        testbed.host(0).ping(peer.parse().unwrap()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn it_vanishes_and_this_machine_is_unchanged() {
    let ours = Namespace::current().unwrap();
    let before = list_links(&mut Connection::open(&ours).unwrap()).await.unwrap();
    let testbed = routed_pods(2).await;
    let host = testbed.host(0).namespace().clone();
    let mut inside = Connection::open(&host).unwrap();
    let names = |links: Vec<flannel_netlink::state::Link>| {
        links.into_iter().map(|link| link.name).collect::<Vec<_>>()
    };
    let found = names(list_links(&mut inside).await.unwrap());
    assert!(found.contains(&"eth0".to_owned()), "{found:?}");
    drop(testbed);
    // The other ends of the host's devices are in namespaces that only the testbed held open.
    until("only loopback and the bridge are left", async || {
        let left = names(list_links(&mut inside).await.unwrap());
        !left.iter().any(|name| name.starts_with("eth") || name.starts_with("pod"))
    })
    .await;
    let after = list_links(&mut Connection::open(&ours).unwrap()).await.unwrap();
    assert_eq!(before, after);
    assert_eq!(ours, Namespace::current().unwrap());
}
