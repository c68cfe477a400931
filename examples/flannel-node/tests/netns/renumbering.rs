//! Steps for nodes whose uplink gets another address instead of its only one, while pods talk.

use std::time::Duration;

use flannel_testbed::{eventually, probe, soon};

use super::support::Cluster;

/// Three times, because one alone says more about what else the machine does.
pub(crate) async fn costs_little(network: &'static str) {
    let cluster = Cluster::new(2, network).await;
    let (_nodes, pods) = cluster.start_all().await;
    let subnet = cluster.subnet(0);
    let mut gaps = Vec::new();
    for last in 77..80 {
        let streams = probe::streams_both_ways(&pods[0], &pods[1], 100).unwrap();
        let flowing = async || {
            soon(streams.flowing()).await;
        };
        flowing().await;
        let address = format!("192.0.2.{last}");
        cluster.host(0).set_addresses([format!("{address}/24").parse().unwrap()]).await.unwrap();
        eventually(async || cluster.lease(0).contains(&address)).await;
        flowing().await;
        gaps.push(streams.stop().await.longest_gap);
    }
    gaps.sort();
    println!("{network}: another address took {gaps:?}");
    assert!(gaps[0] <= Duration::from_millis(200), "{gaps:?}");
    assert!(gaps[2] < Duration::from_secs(2), "{gaps:?}");
    assert_eq!((cluster.subnet(0), cluster.leases()), (subnet, 2));
}
