//! Nodes of this program and of flanneld with its wireguard backend.

use std::{net::IpAddr, process::Command};

use flannel_testbed::{Flanneld, Process};

use crate::{
    cluster,
    support::{Cluster, dual, ipv4},
};

/// flanneld on hosts 0 and 2, and this program on host 1, all of which reach each other.
async fn mixed(network: &str) -> (Cluster, [Flanneld; 2], Process) {
    let cluster = Cluster::new(3, network).await;
    // flanneld insists on it.
    cluster.shell(0, "modprobe br_netfilter").await;
    let theirs = async |n: usize| {
        let mut command = cluster.theirs(n);
        // The machine has no iptables.
        command.arg("-iptables-forward-rules=false");
        // All hosts have one file system.
        command.env("WIREGUARD_KEY_FILE", cluster.subnet_file(n).with_file_name("wgkey"));
        Flanneld::start(cluster.host(n), command, &cluster.subnet_file(n)).await.unwrap()
    };
    let theirs = [theirs(0).await, theirs(2).await];
    let ours = cluster.start_ours(1).await;
    cluster.connected_pods().await;
    (cluster, theirs, ours)
}

/// The network with more options of the backend.
fn with(network: &str, options: &str) -> String {
    let kind = r#""Type":"wireguard""#;
    assert!(network.contains(kind));
    network.replace(kind, &format!("{kind},{options}"))
}

#[tokio::test]
#[ignore = "needs another kernel and the real flanneld: run ./ci.sh vm"]
async fn pods_of_both_programs_reach_each_other_by_ipv4() {
    mixed(&ipv4("wireguard")).await;
}

#[tokio::test]
#[ignore = "needs another kernel and the real flanneld: run ./ci.sh vm"]
async fn leases_of_both_programs_have_one_form() {
    let psk = r#""PSK":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=""#;
    let (cluster, _theirs, _ours) = mixed(&with(&dual("wireguard"), psk)).await;
    let leases = ["get", "--prefix", "--print-value-only", "/coreos.com/network/subnets"];
    let leases = cluster.etcd.ctl(&leases).await.unwrap();
    // What differs from node to node.
    let mask = |line: &str| {
        let words = line.split('"').map(|word| match word {
            word if word.len() == 44 && word.ends_with('=') => "KEY",
            word if word.parse::<IpAddr>().is_ok() => "ADDRESS",
            word => word,
        });
        words.collect::<Vec<_>>().join("\"")
    };
    let leases: Vec<_> = leases.lines().filter(|line| !line.is_empty()).map(mask).collect();
    let form = r#"{"PublicIP":"ADDRESS","PublicIPv6":"ADDRESS","BackendType":"wireguard","BackendData":{"PublicKey":"KEY","Port":51820},"BackendV6Data":{"PublicKey":"KEY","Port":51821}}"#;
    assert_eq!(leases, [form; 3]);
}

#[tokio::test]
#[ignore = "needs another kernel and the real flanneld: run ./ci.sh vm"]
async fn pods_of_both_programs_reach_each_other_by_one_device_over_ipv4() {
    mixed(&with(&dual("wireguard"), r#""Mode":"ipv4""#)).await;
}

#[tokio::test]
#[ignore = "needs another kernel and the real flanneld: run ./ci.sh vm"]
async fn pods_of_both_programs_reach_each_other_by_one_device_over_either_family() {
    mixed(&with(&dual("wireguard"), r#""Mode":"auto","PersistentKeepaliveInterval":25"#)).await;
}

#[tokio::test]
#[ignore = "needs another kernel and the real flanneld: run ./ci.sh vm"]
async fn pods_of_both_programs_reach_each_other_by_one_device_over_ipv6() {
    // flanneld announces ListenPortV6 for a device that listens on ListenPort.
    mixed(&with(&dual("wireguard"), r#""Mode":"ipv6","ListenPortV6":51820"#)).await;
}

/// As where a kernel has no WireGuard: flanneld ignores the name of the engine.
#[tokio::test]
#[ignore = "needs another kernel and the real flanneld: run ./ci.sh vm"]
async fn pods_of_both_programs_reach_each_other_where_ours_encrypts_in_userspace() {
    let network = with(&dual("wireguard"), r#""Engine":"userspace""#);
    let (cluster, _theirs, _ours) = mixed(&network).await;
    // Not the shell's own ip, which knows no details.
    let kinds = async |n: usize| {
        #[expect(clippy::disallowed_methods, reason = "ip tells kinds of devices apart")]
        let mut ip = Command::new("ip");
        ip.args(["-d", "link", "show", "flannel-wg"]);
        cluster.host(n).run(ip).await.unwrap()
    };
    assert!(kinds(1).await.contains("tun type tun"), "{}", kinds(1).await);
    assert!(kinds(0).await.contains("wireguard"), "{}", kinds(0).await);
}

/// By Kubernetes: flanneld has no such networks in etcd.
#[tokio::test]
#[ignore = "needs another kernel and the real flanneld: run ./ci.sh vm"]
async fn pods_of_both_programs_reach_each_other_where_there_is_only_ipv6() {
    let network = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"wireguard"}}"#;
    let cluster = cluster::Cluster::new(3, network).await;
    cluster.shell(0, "modprobe br_netfilter").await;
    let mut theirs = Vec::new();
    for n in [0, 2] {
        let mut command = cluster.theirs(n);
        command.arg("-iptables-forward-rules=false");
        command.env("WIREGUARD_KEY_FILE", cluster.subnet_file(n).with_file_name("wgkey"));
        let started = Flanneld::start(cluster.host(n), command, &cluster.subnet_file(n)).await;
        theirs.push(started.unwrap());
    }
    let _ours = cluster.start_ours(1).await;
    cluster.connected_pods().await;
    let names = |n| cluster.annotations(n).into_keys().collect::<Vec<_>>();
    assert_eq!(names(1), names(0));
}
