//! Nodes that are to send nothing in the clear as soon as all of them can encrypt.

use std::time::Duration;

use flannel_testbed::probe;
use tokio::time::{sleep, timeout};

use super::{
    capture::Capture,
    migrating::{configure, finished},
    support::{Cluster, asked, eventually, program},
};

/// A node that is started with the option while the network moves from the backend `clear` to `encrypted` keeps its peers, names those
/// that it sends to in the clear, and ceases when the last has moved. It does not move back.
pub(crate) async fn ends_with_the_last_peer(clear: &'static str, encrypted: &'static str) {
    let mut cluster = Cluster::new(2, clear).await;
    let (mut nodes, pods) = cluster.start_all().await;
    let capture = Capture::start(&cluster.testbed, vec!["10.244.0.0/16".parse().unwrap()]);
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 100).unwrap();
    timeout(Duration::from_secs(10), streams.flowing()).await.expect("packets flow");
    let socket = cluster.subnet_file(0).with_extension("sock");
    let readiness = || asked(&socket, "/readyz").1;

    nodes[1].pause().unwrap();
    configure(&cluster, encrypted).await;
    cluster.network = encrypted;
    eventually(async || cluster.lease(0).contains("SecondBackend")).await;
    nodes[0].kill().unwrap();
    nodes[0].wait().await.unwrap();
    let mut command = cluster.command(program(), 0);
    command.arg("-require-encryption");
    nodes[0] = cluster.run(0, command).await;
    eventually(async || readiness().contains("host-gw is still needed by")).await;
    nodes[1].resume().unwrap();
    finished(&cluster, encrypted).await;

    let in_the_clear = async |seconds: f64| {
        let before = capture.plain();
        sleep(Duration::from_secs_f64(seconds)).await;
        capture.plain() - before
    };
    eventually(async || in_the_clear(0.1).await == 0).await;
    let rules = async || cluster.shell(0, "nft list ruleset").await;
    eventually(async || rules().await.contains("oifname != \"flannel-wg\"")).await;
    let encrypted_before = capture.encrypted();
    assert_eq!(in_the_clear(1.0).await, 0);
    assert!(capture.encrypted() > encrypted_before + 100);

    configure(&cluster, clear).await;
    eventually(async || readiness().contains("does not encrypt")).await;
    assert_eq!(in_the_clear(2.0).await, 0);
    let report = streams.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}
