//! The program as another user. A user namespace that anybody may make has one user only, so this needs root.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use flannel_testbed::probe;

#[expect(dead_code, reason = "the tests in namespaces use the rest")]
#[path = "netns/support.rs"]
mod support;

use support::{Cluster, VXLAN, eventually, program};

const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

#[tokio::test]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn a_user_with_one_capability_runs_a_node() {
    let cluster = Cluster::new(2, VXLAN).await;
    fs::set_permissions(cluster.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // What the user can run and what it cannot read must not depend on where this tree is.
    let copy = cluster.folder.path().join("flannel-node");
    fs::copy(program(), &copy).unwrap();
    let (mut nodes, mut pods) = (Vec::new(), Vec::new());
    for n in 0..2 {
        let command = cluster.command(&copy, n);
        let mut user = Command::new("setpriv");
        user.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
        user.args(["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--"]);
        user.arg(command.get_program()).args(command.get_args());
        let node = cluster.run(n, user).await;
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
        let shown =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        assert_eq!((shown("CapEff:"), shown("NoNewPrivs:")), ("0000000000001000", "1"));
        assert!(shown("Uid:").starts_with("65534"), "{status}");
        nodes.push(node);
        pods.push(cluster.host(n).add_pod(cluster.subnet(n)).await.unwrap());
    }
    eventually(async || probe::reachability(&pods).await.complete()).await;
    cluster.host(0).delete_route(cluster.subnet(1)).await.unwrap();
    eventually(async || probe::reachability(&pods).await.complete()).await;
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
