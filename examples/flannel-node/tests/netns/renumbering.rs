//! Steps for nodes whose uplink gets another address instead of its only one, while pods talk.

use std::time::Duration;

use flannel_testbed::probe;
use tokio::time::timeout;

use super::support::{Cluster, eventually};

/// Three times, because one alone says more about what else the machine does.
pub(crate) async fn costs_little(network: &'static str) {
    let cluster = Cluster::new(2, network).await;
    let (_nodes, pods) = cluster.start_all().await;
    let subnet = cluster.subnet(0);
    let mut gaps = Vec::new();
    for last in 77..80 {
        let streams = [(0, 1), (1, 0)]
            .map(|(from, to)| probe::stream(&pods[from], pods[to].ip(), 100).unwrap());
        let flowing = async || {
            for stream in &streams {
                timeout(Duration::from_secs(10), stream.flowing()).await.expect("packets flow");
            }
        };
        flowing().await;
        let address = format!("192.0.2.{last}");
        cluster.host(0).set_addresses([format!("{address}/24").parse().unwrap()]).await.unwrap();
        eventually(async || cluster.lease(0).contains(&address)).await;
        flowing().await;
        let mut gap = Duration::ZERO;
        for stream in streams {
            gap = gap.max(stream.stop().await.longest_gap);
        }
        gaps.push(gap);
    }
    gaps.sort();
    println!("{network}: another address took {gaps:?}");
    assert!(gaps[0] <= Duration::from_millis(200), "{gaps:?}");
    assert!(gaps[2] < Duration::from_secs(2), "{gaps:?}");
    assert_eq!((cluster.subnet(0), cluster.leases()), (subnet, 2));
}
