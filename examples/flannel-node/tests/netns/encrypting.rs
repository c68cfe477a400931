//! Nodes that are to send nothing in the clear as soon as all of them can encrypt, and when they get new keys.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use flannel_testbed::{eventually, probe, soon};
use tokio::time::sleep;

use super::{
    capture::Capture,
    migrating::{all_streams, configure, finished, holder},
    support::{Cluster, asked, program},
};

/// A node that is started with the option while the network moves from the backend `clear` to `encrypted` keeps its peers, names those
/// that it sends to in the clear, and ceases when the last has moved. It does not move back.
pub(crate) async fn ends_with_the_last_peer(clear: &'static str, encrypted: &'static str) {
    let mut cluster = Cluster::new(2, clear).await;
    let (mut nodes, pods) = cluster.start_all().await;
    let capture = Capture::start(&cluster.testbed, vec!["10.244.0.0/16".parse().unwrap()]);
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 100).unwrap();
    soon(streams.flowing()).await;
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
    let needed = format!("host-gw is still needed by {}", holder(&cluster, 1));
    eventually(async || readiness().contains(&needed)).await;
    nodes[1].resume().unwrap();
    finished(&cluster, encrypted).await;

    let in_the_clear = async |seconds: f64| {
        let before = capture.plain();
        sleep(Duration::from_secs_f64(seconds)).await;
        capture.plain() - before
    };
    eventually(async || in_the_clear(0.1).await == 0).await;
    let rules = async || cluster.shell(0, "nft list ruleset").await;
    eventually(async || rules().await.contains("oifname != \"flannel-wg*\"")).await;
    let encrypted_before = capture.encrypted();
    assert_eq!(in_the_clear(1.0).await, 0);
    assert!(capture.encrypted() > encrypted_before + 100);

    configure(&cluster, clear).await;
    eventually(async || readiness().contains("does not encrypt")).await;
    assert_eq!(in_the_clear(2.0).await, 0);
    let report = streams.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

/// The keys of all nodes of the network `first` change, and its preshared key. `second` is the network under its other name.
pub(crate) async fn get_new_keys(first: &'static str, second: &'static str) {
    let cluster = Cluster::new(3, first).await;
    let (nodes, pods) = cluster.start_all_with(&["-require-encryption"]).await;
    let capture = Capture::start(&cluster.testbed, vec!["10.244.0.0/16".parse().unwrap()]);
    let streams = all_streams(&pods);
    soon(streams.flowing()).await;

    let preshared_key = cluster.state_folder(0).with_file_name("psk");
    let key_files = ["wgkey", "wgkey-2"];
    let keys = |name: &str| -> Vec<_> {
        let file = |n| cluster.subnet_file(n).with_file_name(name);
        (0..3).filter_map(|n| fs::read_to_string(file(n)).ok()).collect()
    };
    let mut seen: BTreeSet<_> = keys(key_files[0]).into_iter().collect();
    for (network, now, psk) in
        [(second, 1, Some("AwMD")), (first, 0, Some("CQkJ")), (second, 1, None)]
    {
        let mut command = Command::new(program());
        command.args(["config", "rotate-key", "--store", &cluster.store()]);
        if let Some(psk) = psk {
            let bytes = format!("{}AwM=", psk.repeat(10));
            fs::write(&preshared_key, bytes).unwrap();
            command.arg("--psk-file").arg(&preshared_key);
        }
        cluster.host(0).run(command).await.unwrap();
        finished(&cluster, network).await;
        assert!(
            keys(key_files[1 - now]).is_empty(),
            "a key that is not used any more is not there"
        );
        let new = keys(key_files[now]);
        assert_eq!(new.len(), 3);
        for key in new {
            assert!(seen.insert(key), "it is a new one");
        }
        soon(streams.flowing()).await;
    }
    let report = streams.stop().await;
    println!("{report}");
    assert_eq!((report.lost, capture.plain()), (0, 0), "{report}");
    assert!(capture.encrypted() > report.received);
    for node in nodes {
        let output = node.output();
        let quarrels = output.iter().filter(|line| line.contains("by another process"));
        assert_eq!(quarrels.collect::<Vec<_>>(), [""; 0], "one backend takes what is the other's");
    }
}
