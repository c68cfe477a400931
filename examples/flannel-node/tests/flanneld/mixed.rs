//! Clusters of both kinds of nodes.
#![expect(clippy::disallowed_methods, reason = "these tests are about the programs themselves")]

use std::{collections::BTreeSet, os::unix::fs::symlink, process::Command, time::Duration};

use flannel_testbed::Flanneld;
use tokio::task::JoinSet;

use super::support::{Cluster, dual, ipv4};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn pods_of_both_reach_each_other_by_host_gw() {
    mixed(&dual("host-gw")).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn pods_of_both_reach_each_other_by_vxlan() {
    mixed(&dual("vxlan")).await;
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and the real flanneld: run ./ci.sh flanneld as root"]
async fn tun_pods_of_both_reach_each_other_by_udp() {
    mixed(&ipv4("udp")).await;
}

async fn mixed(network: &str) {
    let cluster = Cluster::new(3, network).await;
    let _theirs = [cluster.start_theirs(0).await, cluster.start_theirs(2).await];
    let _ours = cluster.start_ours(1).await;
    cluster.connected_pods().await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn nodes_of_both_that_start_at_once_have_subnets_of_their_own() {
    let cluster = std::sync::Arc::new(Cluster::new(6, &ipv4("host-gw")).await);
    let mut starts = JoinSet::new();
    for n in 0..6 {
        let cluster = std::sync::Arc::clone(&cluster);
        starts.spawn(async move {
            if n % 2 == 0 {
                return (Some(cluster.start_ours(n).await), None);
            }
            // It ends when somebody was faster, and is started again by whoever supervises it.
            for _ in 0..10 {
                let (command, file) = (cluster.theirs(n), cluster.subnet_file(n));
                if let Ok(theirs) = Flanneld::start(cluster.host(n), command, &file).await {
                    return (None, Some(theirs));
                }
            }
            panic!("flanneld never got a subnet");
        });
    }
    let _running = starts.join_all().await;
    let subnets: BTreeSet<_> = (0..6).map(|n| cluster.subnet(n).to_string()).collect();
    assert_eq!(subnets.len(), 6, "{subnets:?}");
    cluster.connected_pods().await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn a_role_for_config_and_subnets_alone_suffices_for_both() {
    let cluster = Cluster::new(2, &ipv4("host-gw")).await;
    for line in [
        "role add flanneld",
        "role grant-permission flanneld read /coreos.com/network/config",
        "role grant-permission flanneld --prefix=true readwrite /coreos.com/network/subnets",
        "user add flanneld:secret",
        "user grant-role flanneld flanneld",
        "user add root:secret",
        "user grant-role root root",
        "auth enable",
    ] {
        cluster.etcd.ctl(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    let user = ["-etcd-username=flanneld", "-etcd-password=secret"];
    let (mut theirs, mut ours) = (cluster.theirs(0), cluster.ours(1));
    theirs.args(user);
    ours.args(user);
    let file = cluster.subnet_file(0);
    let _theirs = Flanneld::start(cluster.host(0), theirs, &file).await.unwrap();
    let mut ours = cluster.host(1).spawn(ours).unwrap();
    let limit = Duration::from_secs(60);
    let goes_without = "this user may not read /coreos.com/network/subnet-owners/";
    ours.line(limit, |line| line.contains(goes_without)).await.unwrap();
    ours.line(limit, |line| line.contains(" ready subnet=")).await.unwrap();
    cluster.connected_pods().await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn a_flanneld_on_the_same_host_is_named() {
    let cluster = Cluster::new(1, &ipv4("host-gw")).await;
    // The name of a process is that of its program.
    let program = cluster.folder.path().join("flanneld");
    symlink(Flanneld::path().unwrap(), &program).unwrap();
    let mut theirs = Command::new(program);
    theirs.args(cluster.theirs(0).get_args());
    let _theirs = Flanneld::start(cluster.host(0), theirs, &cluster.subnet_file(0)).await.unwrap();
    let mut ours = cluster.host(0).spawn(cluster.ours(0)).unwrap();
    let named = |line: &str| line.contains("flanneld runs on this host too");
    ours.line(Duration::from_secs(60), named).await.unwrap();
}
