//! What nodes do for pods, and keep.

use std::{fs, time::Duration};

use flannel_testbed::{Blocks, Testbed, eventually, probe};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, DUAL, DUAL_VXLAN, IPV4, IPV6, IPV6_VXLAN, TWO_SUBNETS};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn nodes_of_both_families_reach_each_other_and_say_so_in_subnet_env() {
    // VXLAN takes 50 bytes of a packet over IPv4 and 70 over IPv6, and pods use both.
    for (network, mtu) in [(DUAL, "1500"), (DUAL_VXLAN, "1430")] {
        reach_each_other_and_say_so(network, mtu).await;
    }
}

async fn reach_each_other_and_say_so(network: &'static str, mtu: &str) {
    let cluster = Cluster::new(3, network).await;
    let mut nodes = Vec::new();
    for n in 0..3 {
        nodes.push(cluster.start(n).await);
    }
    let pods = cluster.pods(3).await;
    eventually(async || probe::reachability(&pods).await.complete()).await;
    assert_eq!(probe::reachability(&pods).await.probed(), 18);

    let env = fs::read_to_string(cluster.subnet_file(0)).unwrap();
    let lines: Vec<_> = env.lines().map(|line| line.split_once('=').unwrap()).collect();
    let keys: Vec<_> = lines.iter().map(|(key, _)| *key).collect();
    let expected = [
        "FLANNEL_NETWORK",
        "FLANNEL_SUBNET",
        "FLANNEL_IPV6_NETWORK",
        "FLANNEL_IPV6_SUBNET",
        "FLANNEL_MTU",
        "FLANNEL_IPMASQ",
    ];
    assert_eq!(keys, expected);
    assert_eq!((lines[0].1, lines[4].1, lines[5].1), ("10.244.0.0/16", mtu, "false"));
    assert!(lines[1].1.ends_with(".1/24") && lines[3].1.ends_with("::1/64"), "{env}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn hosts_without_any_ipv4_need_none() {
    for (network, mtu) in [(IPV6, 1500), (IPV6_VXLAN, 1430)] {
        for etcd in [false, true] {
            let underlay: Blocks = "2001:db8::/64".parse().unwrap();
            let testbed = Testbed::builder(2).underlay(underlay).build().await.unwrap();
            assert_eq!(testbed.host(0).ipv4(), None);
            let mut cluster = Cluster::on(testbed, network);
            cluster.etcd = etcd;
            let _etcd = if etcd { Some(cluster.start_etcd().await) } else { None };
            let _nodes = [cluster.start(0).await, cluster.start(1).await];
            let pods = cluster.pods(2).await;
            eventually(async || probe::reachability(&pods).await.complete()).await;
            let subnet = cluster.subnet(0).ipv6().unwrap();
            let shown = subnet.to_string().replace("::/", "::1/");
            assert_eq!(
                fs::read_to_string(cluster.subnet_file(0)).unwrap(),
                format!(
                    "FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET={shown}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
                )
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn killed_and_started_again_it_has_its_subnet_and_no_packet_was_lost() {
    for network in [DUAL, DUAL_VXLAN] {
        kill_and_start_again(network).await;
    }
}

async fn kill_and_start_again(network: &'static str) {
    let cluster = Cluster::new(2, network).await;
    let mut first = cluster.start(0).await;
    let _second = cluster.start(1).await;
    eventually(async || cluster.knows(0, 1).await && cluster.knows(1, 0).await).await;
    let pods = cluster.pods(2).await;
    let subnet = cluster.subnet(0);
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 20).unwrap();
    for kill in [true, false, true] {
        streams.flowing().await;
        let asked = Instant::now();
        if kill {
            first.kill().unwrap()
        } else {
            first.terminate().unwrap()
        }
        let status = first.wait().await.unwrap();
        assert!(kill || status.success(), "{status}");
        assert!(asked.elapsed() < Duration::from_secs(1));
        streams.flowing().await;
        fs::remove_file(cluster.subnet_file(0)).unwrap();
        first = cluster.start(0).await;
        assert_eq!(cluster.subnet(0), subnet);
    }
    let report = streams.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_waits_for_its_network_card_and_follows_it() {
    let cluster = Cluster::new(2, DUAL).await;
    let _peer = cluster.start(1).await;
    cluster.host(0).delete_uplink().await.unwrap();
    let mut node = cluster.host(0).spawn(cluster.command(0)).unwrap();
    let said = |line: &str| line.contains("cannot find the uplink") && line.contains("eth0");
    node.line(Duration::from_secs(20), said).await.unwrap();
    cluster.host(0).create_uplink().await.unwrap();
    node.line(Duration::from_secs(1), |line| line.contains(" ready subnet=")).await.unwrap();
    eventually(async || cluster.knows(0, 1).await).await;

    cluster.host(0).set_mtu(1400).await.unwrap();
    eventually(async || {
        fs::read_to_string(cluster.subnet_file(0)).unwrap().contains("FLANNEL_MTU=1400\n")
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_new_address_is_published_and_peers_follow() {
    let cluster = Cluster::new(2, IPV4).await;
    let mut node = cluster.start(0).await;
    let _peer = cluster.start(1).await;
    eventually(async || cluster.knows(0, 1).await && cluster.knows(1, 0).await).await;
    let (subnet, pods) = (cluster.subnet(0), cluster.pods(2).await);
    assert!(pods[0].ping(pods[1].ip()).await.is_ok());
    cluster.host(0).set_addresses(["192.0.2.77/24".parse().unwrap()]).await.unwrap();
    let start = Instant::now();
    eventually(async || pods[1].ping(pods[0].ip()).await.is_ok()).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(cluster.subnet(0), subnet);

    node.kill().unwrap();
    node.wait().await.unwrap();
    cluster.host(0).set_addresses(["192.0.2.78/24".parse().unwrap()]).await.unwrap();
    let _node = cluster.start(0).await;
    eventually(async || pods[1].ping(pods[0].ip()).await.is_ok()).await;
    assert_eq!(cluster.subnet(0), subnet);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_that_cannot_keep_an_id_says_so_and_goes_by_its_address() {
    let cluster = Cluster::new(2, IPV4).await;
    for n in 0..2 {
        let mut command = cluster.command(n);
        command.args(["-state-dir", "/proc/none"]);
        let mut node = cluster.host(n).spawn(command).unwrap();
        let said = |line: &str| line.contains("cannot keep a node id in /proc/none/node-id");
        node.line(Duration::from_secs(20), said).await.unwrap();
        let address = cluster.host(n).ip().to_string();
        let node_is = format!(" node={address} ");
        let named = |line: &str| line.contains("starting the node") && line.contains(&node_is);
        let start = node.line(Duration::from_secs(20), named).await.unwrap();
        for key in ["version", "store", "backend", "network", "kernel"] {
            assert!(start.contains(&format!(" {key}=")), "{start}");
        }
        node.line(Duration::from_secs(20), |line| line.contains(" ready subnet=")).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_lost_lease_is_taken_anew_and_pods_keep_talking() {
    let cluster = Cluster::new(2, IPV4).await;
    let mut node = cluster.start(0).await;
    let _peer = cluster.start(1).await;
    eventually(async || cluster.knows(0, 1).await && cluster.knows(1, 0).await).await;
    let (subnet, pods) = (cluster.subnet(0), cluster.pods(2).await);
    let leases = cluster.folder.path().join("store/subnets");
    let key = subnet.ipv4().map(|block| format!("{}-{}", block.ip(), block.prefix())).unwrap();
    fs::remove_file(leases.join(&key)).unwrap();
    node.line(Duration::from_secs(5), |line| line.contains("lease lost")).await.unwrap();
    eventually(async || leases.join(&key).exists()).await;
    eventually(async || pods[1].ping(pods[0].ip()).await.is_ok()).await;
    assert_eq!(cluster.subnet(0), subnet);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_that_stood_still_leaves_its_successor_alone() {
    let cluster = Cluster::new(3, TWO_SUBNETS).await;
    let mut old = cluster.start(0).await;
    let _peer = cluster.start(2).await;
    let subnet = cluster.subnet(0);
    let lease = cluster
        .folder
        .path()
        .join("store/subnets")
        .join(subnet.ipv4().map(|block| format!("{}-{}", block.ip(), block.prefix())).unwrap());
    old.pause().unwrap();
    fs::remove_file(&lease).unwrap();
    let _new = cluster.start(1).await;
    assert_eq!(cluster.subnet(1), subnet, "there is no other");
    let successors = fs::read(&lease).unwrap();
    let pods = [
        cluster.host(2).add_pod(cluster.subnet(2)).await.unwrap(),
        cluster.host(1).add_pod(subnet).await.unwrap(),
    ];
    eventually(async || pods[0].ping(pods[1].ip()).await.is_ok()).await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 50).unwrap();

    old.resume().unwrap();
    let lost = |line: &str| line.contains("lease lost");
    old.line(Duration::from_secs(5), lost).await.unwrap();
    let full = |line: &str| line.contains("all 2 IPv4 subnets of 10.244.0.0/16 are taken");
    old.line(Duration::from_secs(5), full).await.unwrap();
    assert_eq!(fs::read(&lease).unwrap(), successors);

    // What subnet.env says of before is a wish.
    old.kill().unwrap();
    old.wait().await.unwrap();
    let mut again = cluster.host(0).spawn(cluster.command(0)).unwrap();
    again.line(Duration::from_secs(5), full).await.unwrap();
    assert_eq!(fs::read(&lease).unwrap(), successors);
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn etcd_may_be_away_for_longer_than_a_lease_lasts() {
    let mut cluster = Cluster::new(3, IPV4).await;
    cluster.etcd = true;
    let mut etcd = cluster.start_etcd().await;
    let mut nodes = Vec::new();
    for n in 0..2 {
        let mut command = cluster.command(n);
        command.arg("-lease-ttl=5");
        let mut node = cluster.host(n).spawn(command).unwrap();
        node.line(Duration::from_secs(20), |line| line.contains(" ready subnet=")).await.unwrap();
        nodes.push(node);
    }
    eventually(async || cluster.knows(0, 1).await && cluster.knows(1, 0).await).await;
    let pods = cluster.pods(2).await;
    let subnets = [cluster.subnet(0), cluster.subnet(1)];
    let stream = probe::stream(&pods[0], pods[1].ip(), 20).unwrap();

    etcd.kill().unwrap();
    etcd.wait().await.unwrap();
    sleep(Duration::from_secs(15)).await;
    etcd = cluster.start_etcd().await;

    // A node that joins then is known to the others, and they kept what they had.
    nodes.push(cluster.start(2).await);
    let joined = cluster.subnet(2);
    assert!(!subnets.contains(&joined));
    eventually(async || cluster.knows(0, 2).await && cluster.knows(1, 2).await).await;
    assert_eq!([cluster.subnet(0), cluster.subnet(1)], subnets);
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    drop(etcd);
}
