//! The program as another user. A user namespace that anybody may make has one user only, so this needs root.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use flannel_testbed::{Process, probe};

#[expect(dead_code, reason = "the tests in namespaces use the rest")]
#[path = "netns/support.rs"]
mod support;

use support::{Cluster, HOST_GW, HOST_GW_NFT, VXLAN, asked, eventually, program};

const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

/// The program where another user can run it, wherever this tree is; and that user may write to the cluster's folder.
fn program_for_others(cluster: &Cluster) -> PathBuf {
    fs::set_permissions(cluster.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = cluster.folder.path().join("flannel-node");
    fs::copy(program(), &copy).unwrap();
    copy
}

/// The command as another user, with no capability but `CAP_NET_ADMIN`.
fn as_user(command: &Command) -> Command {
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    user.args(["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--"]);
    user.arg(command.get_program()).args(command.get_args());
    user
}

/// It is that user's, with that capability, and says that its sandbox is in force.
fn assert_is_users(node: &Process) {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
    let shown = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
    assert_eq!((shown("CapEff:"), shown("NoNewPrivs:")), ("0000000000001000", "1"));
    assert!(shown("Uid:").starts_with("65534"), "{status}");
    let output = node.output();
    let sandboxed = |line: &String| line.contains("restricted by Landlock");
    assert!(output.iter().any(sandboxed), "{output:?}");
}

#[tokio::test]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn a_user_with_one_capability_runs_a_node() {
    let cluster = Cluster::new(2, VXLAN).await;
    let copy = program_for_others(&cluster);
    let (mut nodes, mut pods) = (Vec::new(), Vec::new());
    for n in 0..2 {
        let node = cluster.run(n, as_user(&cluster.command(&copy, n))).await;
        assert_is_users(&node);
        nodes.push(node);
        pods.push(cluster.host(n).add_pod(cluster.subnet(n)).await.unwrap());
    }
    eventually(async || probe::reachability(&pods).await.complete()).await;
    cluster.host(0).delete_route(cluster.subnet(1)).await.unwrap();
    eventually(async || probe::reachability(&pods).await.complete()).await;
}

#[tokio::test]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn a_user_with_one_capability_keeps_a_firewall_in_the_sandbox() {
    for (network, rule, flush) in [
        (HOST_GW, "FLANNEL-POSTRTG", "iptables -t nat -F FLANNEL-POSTRTG"),
        (HOST_GW_NFT, "flannel-ipv4", "nft flush ruleset"),
    ] {
        let cluster = Cluster::new(2, network).await;
        cluster.shell(0, "echo 1 > /proc/sys/net/ipv4/ip_forward").await;
        let mut command = cluster.command(&program_for_others(&cluster), 0);
        command.arg("--ip-masq");
        let node = cluster.run(0, as_user(&command)).await;
        assert_is_users(&node);
        let pod = cluster.host(0).add_pod(cluster.subnet(0)).await.unwrap();
        let outside = cluster.host(1).ip();
        let masquerades =
            async || pod.ping(outside).await.is_ok_and(|pong| pong.seen_as == cluster.host(0).ip());
        eventually(masquerades).await;
        let rules = async || cluster.shell(0, "nft list ruleset").await;
        assert!(rules().await.contains(rule));
        cluster.shell(0, flush).await;
        eventually(async || {
            rules().await.contains("masquerade") || rules().await.contains("MASQUERADE")
        })
        .await;
        eventually(masquerades).await;
        let socket = cluster.subnet_file(0).with_extension("sock");
        let (code, says) = asked(&socket, "/readyz");
        assert_eq!((code, says.as_str()), (200, "flannel-node is ready\n"));
    }
}

#[tokio::test]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn the_udp_backend_keeps_the_capability_for_programs_in_the_kernel() {
    let cluster = Cluster::new(2, UDP).await;
    let (nodes, pods) = cluster.start_all().await;
    let status = fs::read_to_string(format!("/proc/{}/status", nodes[0].pid().unwrap())).unwrap();
    // CAP_NET_ADMIN and CAP_BPF.
    assert!(status.contains("CapEff:\t0000008000001000"), "{status}");
    let output = nodes[0].output();
    assert!(!output.iter().any(|line| line.contains("is not permitted")), "{output:?}");
    let mut command = Command::new(program());
    command.args(["explain", &pods[0].ip().to_string(), &pods[1].ip().to_string()]);
    command.args(["--store", &cluster.store(), "--subnet-file"]).arg(cluster.subnet_file(0));
    let mut explain = cluster.host(0).spawn(command).unwrap();
    let ended = explain.wait().await.unwrap();
    assert!(ended.success(), "{:?}", explain.output());
}
