//! The program as another user. A user namespace that anybody may make has one user only, so this needs root.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{env, fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, time::Duration};

use flannel_testbed::{Process, eventually, probe, soon};
use tokio::time::Instant;

#[expect(dead_code, reason = "the tests in namespaces use the rest")]
#[path = "netns/support.rs"]
mod support;

use support::{Cluster, HOST_GW, HOST_GW_NFT, VXLAN, asked, program};

const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;
const EBPF_DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"ebpf"}}"#;
const EBPF: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Engine":"ebpf"}}"#;
const USERSPACE: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Engine":"userspace"}}"#;

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
    // CAP_NET_ADMIN and CAP_BPF, and CAP_NET_RAW where legacy iptables may have to be run.
    let raw = if flannel_firewall::needs_net_raw() { 2 } else { 0 };
    for set in ["CapEff", "CapPrm"] {
        assert!(status.contains(&format!("{set}:\t000000800000{}000", 1 + raw)), "{status}");
    }
    // The self-test had the rights that are gone by now, and so `auto` means programs.
    let properties = &cluster.status(0).await["backend_report"]["properties"];
    let passed = properties["self_test"].as_str().unwrap();
    assert!(passed.starts_with("passed in ") && passed.ends_with(" ms"), "{passed}");
    assert_eq!(properties["engine"], "ebpf");
    let output = nodes[0].output();
    assert!(!output.iter().any(|line| line.contains("is not permitted")), "{output:?}");
    let mut command = Command::new(program());
    command.args(["explain", &pods[0].ip().to_string(), &pods[1].ip().to_string()]);
    command.args(["--store", &cluster.store(), "--subnet-file"]).arg(cluster.subnet_file(0));
    let mut explain = cluster.host(0).spawn(command).unwrap();
    let ended = explain.wait().await.unwrap();
    assert!(ended.success(), "{:?}", explain.output());
}

#[tokio::test]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn a_node_without_the_rights_of_the_self_test_says_what_carries_packets() {
    // As in the containers that docs/configuration.md names.
    for (network, rights, engine) in [
        (UDP, "net_admin", "userspace"),
        (UDP, "net_admin,+bpf", "userspace"),
        (EBPF, "net_admin,+bpf", "ebpf"),
    ] {
        let cluster = Cluster::new(1, network).await;
        let node = cluster.command(program(), 0);
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set=-all,+{rights}")).arg("--no-new-privs").arg("--");
        command.arg(node.get_program()).args(node.get_args());
        let node = cluster.run(0, command).await;
        let properties = &cluster.status(0).await["backend_report"]["properties"];
        assert_eq!(properties["engine"], engine, "{network}, {rights}: {properties}");
        let output = node.output();
        let reason = properties["ebpf_refused"].as_str();
        assert_eq!(reason.is_some(), engine == "userspace", "{properties}");
        let said = |line: &&String| line.contains("BPF programs do not carry packets: the ");
        let said: Vec<_> = output.iter().filter(said).collect();
        assert_eq!(said.len(), usize::from(reason.is_some()), "{output:?}");
        if let Some(reason) = reason {
            assert!(said[0].contains("WARN") && said[0].contains(reason), "{said:?}: {reason}");
            assert!(reason.starts_with("self-test not tried: "), "{reason}");
        }
    }
}

/// 4 unless `FLANNEL_RESTARTS` says otherwise.
fn rounds() -> u32 {
    env::var("FLANNEL_RESTARTS").map_or(4, |rounds| rounds.parse().expect("a number"))
}

/// Ends the node of host 0 by SIGKILL and SIGTERM in turns and starts it again.
/// Returns for each round the longest gap between answers to packets sent every 5 ms, and how long no node was ready.
async fn restarts(network: &'static str) -> Vec<[Duration; 2]> {
    let cluster = Cluster::new(2, network).await;
    let (mut nodes, pods) = cluster.start_all().await;
    let mut gaps = Vec::new();
    for round in 0..rounds() {
        let streams = probe::streams_both_ways(&pods[0], &pods[1], 200).unwrap();
        soon(streams.flowing()).await;
        let ended = Instant::now();
        end(&mut nodes[0], round % 2 == 0).await;
        fs::remove_file(cluster.subnet_file(0)).unwrap();
        nodes[0] = cluster.start(0).await;
        let away = ended.elapsed();
        soon(streams.flowing()).await;
        gaps.push([streams.stop().await.longest_gap, away]);
    }
    println!("{network}: gaps and times away {gaps:?}");
    gaps
}

async fn end(node: &mut Process, is_violent: bool) {
    if is_violent {
        node.kill().unwrap();
        node.wait().await.unwrap();
    } else {
        node.terminate().unwrap();
        assert!(node.wait().await.unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn programs_in_the_kernel_lose_no_packet_while_the_node_is_away() {
    let cluster = Cluster::new(2, EBPF_DUAL).await;
    let (mut nodes, pods) = cluster.start_all().await;
    let other = env::var_os("FLANNEL_OTHER_BUILD").map_or_else(|| program().to_owned(), Into::into);
    let builds = [other, program().to_owned()];
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 1000).unwrap();
    let (began, mut bytes, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    for round in 0..rounds() {
        let bulk = probe::tcp_throughput(&pods[0], &pods[1], Duration::from_secs(1));
        let replace = async {
            let ended = Instant::now();
            end(&mut nodes[0], round % 2 == 0).await;
            fs::remove_file(cluster.subnet_file(0)).unwrap();
            let build = &builds[round as usize / 2 % 2];
            nodes[0] = cluster.run(0, cluster.command(build, 0)).await;
            slowest = slowest.max(ended.elapsed());
        };
        let (bulk, ()) = tokio::join!(bulk, replace);
        bytes += bulk.unwrap().bytes;
        soon(streams.flowing()).await;
    }
    let took = began.elapsed();
    let report = streams.stop().await;
    println!(
        "{} restarts in {took:?}, away {slowest:?} at most, beside {} MB of TCP: {report}",
        rounds(),
        bytes / 1_000_000
    );
    // A thousand a second each way in each family, where the machine has the time for that: late probes are left out.
    assert!(report.lost == 0 && report.sent > 1000 && bytes > 0, "{report}");
}

#[tokio::test]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn the_userspace_engine_loses_what_comes_while_the_node_is_away() {
    let gaps = restarts(USERSPACE).await;
    // How long a start takes says more about what else the machine does. Probes may be late there as well, but not all of them.
    let mut late: Vec<_> = gaps.iter().map(|[gap, away]| gap.saturating_sub(*away)).collect();
    late.sort();
    assert!(late[late.len() / 2] < Duration::from_millis(100), "{gaps:?}");
    assert!(late[late.len() - 1] < Duration::from_millis(250), "{gaps:?}");
}

#[tokio::test]
#[ignore = "needs root: run ./ci.sh root as root"]
async fn another_backend_finds_nothing_of_the_udp_backend_when_it_is_ready() {
    for udp in [EBPF, USERSPACE] {
        let cluster = Cluster::new(2, udp).await;
        let (mut nodes, pods) = cluster.start_all().await;
        for network in [VXLAN, udp, HOST_GW, udp] {
            fs::remove_file(cluster.folder.path().join("store/config")).unwrap();
            for (n, node) in nodes.iter_mut().enumerate() {
                end(node, n == 0).await;
                // As a node that has never had another backend: it would migrate.
                fs::remove_file(cluster.subnet_file(n).with_extension("backend.json")).unwrap();
                let command = cluster.command(program(), n);
                let arguments: Vec<_> = command.get_args().collect();
                let mut other = Command::new(program());
                other.args(
                    arguments.iter().map(|it| if *it == udp { network.as_ref() } else { *it }),
                );
                *node = cluster.run(n, other).await;
                let shown = |arguments: &str| {
                    let mut words = arguments.split(' ');
                    let mut command = Command::new(words.next().unwrap());
                    command.args(words);
                    let output = cluster.host(n).namespace().run(|| command.output().unwrap());
                    String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
                };
                let is_udp = network == udp;
                let is_ebpf = is_udp && udp == EBPF;
                let links = shown("ip -br link");
                assert_eq!(links.contains("flannel0"), is_udp, "{network}: {links}");
                assert_eq!(links.contains("flannel.1"), network == VXLAN, "{network}: {links}");
                let filters = shown("tc filter show dev eth0 ingress");
                assert_eq!(filters.contains("flannel-udp"), is_ebpf, "{network}: {filters}");
                let qdiscs = shown("tc qdisc show dev eth0");
                assert_eq!(qdiscs.contains("clsact"), is_ebpf, "{network}: {qdiscs}");
            }
            eventually(async || probe::reachability(&pods).await.complete()).await;
        }
    }
}
