//! Against the real kernel, each test with a testbed of its own.

use flannel_testbed::{Host, Pod, Testbed};

/// Two hosts with a pod each, and a route to the other's pods.
async fn two_routed_pods() -> (Testbed, Pod, Pod) {
    let testbed = Testbed::new(2).await.unwrap();
    let (one, two) = (testbed.host(0), testbed.host(1));
    let pod_one = one.add_pod(subnet(1)).await.unwrap();
    let pod_two = two.add_pod(subnet(2)).await.unwrap();
    one.add_route(subnet(2), two).await.unwrap();
    two.add_route(subnet(1), one).await.unwrap();
    (testbed, pod_one, pod_two)
}

fn subnet(n: u8) -> flannel_testbed::Blocks {
    format!("10.244.{n}.0/24,fd00:244:{n}::/64")
        .parse()
        .unwrap()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn routed_pods_reach_each_other() {
    let (testbed, one, two) = two_routed_pods().await;
    one.ping(two.ipv4().unwrap().into()).await.unwrap();
    one.ping(two.ipv6().unwrap().into()).await.unwrap();
    let table = testbed.reachability().await;
    assert!(table.complete(), "{table}");
    assert_eq!(table.probed(), 8, "two by two in two families");
    println!("{table}");
    let _: &Host = testbed.host(0);
}
