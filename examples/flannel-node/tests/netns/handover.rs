//! One process takes over from another, under load: of the same build, or of the one that `FLANNEL_OTHER_BUILD` names.

use std::{env, fs, time::Duration};

use flannel_testbed::{probe, soon};
use tokio::time::Instant;

use super::support::{Cluster, HOST_GW, VXLAN, program};

/// How often the node is replaced: 3 times unless `FLANNEL_HANDOVERS` says otherwise.
fn rounds() -> u32 {
    env::var("FLANNEL_HANDOVERS").map_or(3, |rounds| rounds.parse().expect("a number"))
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_process_takes_over_vxlan_and_no_packet_is_lost() {
    take_over(VXLAN).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_process_takes_over_host_gw_and_no_packet_is_lost() {
    take_over(HOST_GW).await;
}

async fn take_over(network: &'static str) {
    let cluster = Cluster::new(2, network).await;
    let (mut nodes, pods) = cluster.start_all().await;
    let subnet = cluster.subnet(0);
    let other = env::var_os("FLANNEL_OTHER_BUILD").map_or_else(|| program().to_owned(), Into::into);
    let builds = [other, program().to_owned()];
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 100).unwrap();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds() {
        let build = &builds[round as usize % 2];
        let bulk = probe::tcp_throughput(&pods[0], &pods[1], Duration::from_secs(1));
        let replace = async {
            let asked = Instant::now();
            nodes[0].terminate().unwrap();
            assert!(nodes[0].wait().await.unwrap().success());
            fs::remove_file(cluster.subnet_file(0)).unwrap();
            nodes[0] = cluster.run(0, cluster.command(build, 0)).await;
            slowest = slowest.max(asked.elapsed());
            assert_eq!(cluster.subnet(0), subnet);
        };
        let (bulk, ()) = tokio::join!(bulk, replace);
        assert!(bulk.unwrap().bytes > 0);
        soon(streams.flowing()).await;
    }
    let report = streams.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    println!("{} handovers, slowest {slowest:?}: {report}", rounds());
}
