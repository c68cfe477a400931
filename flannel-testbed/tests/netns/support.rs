use std::time::Duration;

use flannel_testbed::{Blocks, Pod, Testbed};
use tokio::time::{interval, timeout};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MS: Duration = Duration::from_millis(1);

/// The pod subnet of host number `n`, of both families.
pub(crate) fn subnet(n: usize) -> Blocks {
    blocks(&format!("10.244.{n}.0/24,fd00:244:{n}::/64"))
}

pub(crate) fn blocks(text: &str) -> Blocks {
    text.parse().unwrap()
}

/// Hosts with a pod each, and on each host a route to the pods of every other.
pub(crate) async fn routed_pods(hosts: u32) -> Testbed {
    let testbed = Testbed::new(hosts).await.unwrap();
    for (number, host) in testbed.hosts().iter().enumerate() {
        host.add_pod(subnet(number)).await.unwrap();
    }
    for host in testbed.hosts() {
        for (number, other) in testbed.hosts().iter().enumerate() {
            if other.name() != host.name() {
                host.add_route(subnet(number), other).await.unwrap();
            }
        }
    }
    testbed
}

/// Two hosts of [`routed_pods`], and their pods.
pub(crate) async fn two_routed_pods() -> (Testbed, Pod, Pod) {
    let testbed = routed_pods(2).await;
    let pods: [Pod; 2] = testbed.pods().try_into().unwrap();
    let [one, two] = pods;
    (testbed, one, two)
}

/// Waits until `condition` holds, at most ten seconds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        let mut ticks = interval(10 * MS);
        while !condition().await {
            ticks.tick().await;
        }
    };
    timeout(10 * SECOND, met).await.unwrap_or_else(|_| panic!("not within 10 s: {what}"));
}

/// Whether both pods get answers from each other in both families.
pub(crate) async fn connected(one: &Pod, two: &Pod) -> bool {
    for (from, to) in [(one, two), (two, one)] {
        for ip in to.endpoint().ips() {
            if let Err(error) = from.ping(ip).await {
                println!("{error}");
                return false;
            }
        }
    }
    true
}
