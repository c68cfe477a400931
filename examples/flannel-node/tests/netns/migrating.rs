//! Steps for nodes that move from one backend to another, while pods on all hosts send each other 100 packets a second.

use std::{fs, process::Command, time::Duration};

use flannel_testbed::{
    Pod, Process,
    probe::{self, Streams},
    soon,
};
use tokio::time::{Instant, sleep, timeout};

use super::support::{Cluster, asked, program};

const HOSTS: usize = 3;
/// How often it is looked how far nodes are.
const LOOK: Duration = Duration::from_millis(20);

/// What happens to one of the nodes meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Trouble {
    Nothing,
    /// It is killed in each phase, and started again after a while.
    Killed,
    /// It does nothing for a while, and learns of nothing.
    Lags,
}

/// Moves a cluster through these networks, and returns how long each took. No packet is lost, and nothing is left of the backends before.
pub(crate) async fn loses_nothing(networks: &[&'static str], trouble: Trouble) {
    let mut cluster = Cluster::new(HOSTS as u32, networks[0]).await;
    if networks.iter().any(|network| network.contains("ebpf")) {
        // While Linux makes or removes the qdisc that filters hang on, a device sends nothing: some milliseconds.
        for n in 0..HOSTS {
            cluster.shell(n, "tc qdisc add dev eth0 clsact").await;
        }
    }
    let (mut nodes, pods) = cluster.start_all().await;
    let streams = all_streams(&pods);
    soon(streams.flowing()).await;
    let before = devices(&cluster).await;
    for network in &networks[1..] {
        let began = Instant::now();
        // Before there is something to learn of.
        let paused: &[usize] = match trouble {
            Trouble::Nothing => &[],
            Trouble::Killed => &[0, 2],
            Trouble::Lags => &[1],
        };
        for n in paused {
            nodes[*n].pause().unwrap();
        }
        configure(&cluster, network).await;
        cluster.network = network;
        match trouble {
            Trouble::Nothing => {}
            Trouble::Killed => kill_in_each_phase(&cluster, &mut nodes).await,
            Trouble::Lags => lag(&cluster, &mut nodes[1], network).await,
        }
        finished(&cluster, network).await;
        println!("{network}: {trouble:?}: {:?}", began.elapsed());
    }
    soon(streams.flowing()).await;
    let report = streams.stop().await;
    println!("{networks:?}, {trouble:?}: {report}");
    assert_eq!(report.lost, 0, "{networks:?}, {trouble:?}: {report}");
    if networks.first() == networks.last() {
        assert_eq!(devices(&cluster).await, before);
    }
}

/// 100 packets a second between all pods of three hosts.
pub(crate) fn all_streams(pods: &[Pod]) -> Streams {
    let pairs = [(0, 1), (0, 2), (1, 2)].into_iter();
    pairs.map(|(a, b)| probe::streams_both_ways(&pods[a], &pods[b], 100).unwrap()).collect()
}

/// Stores another network, as an operator does.
pub(crate) async fn configure(cluster: &Cluster, network: &str) {
    #[expect(clippy::disallowed_methods, reason = "this test is about the program itself")]
    let mut command = Command::new(program());
    command.args(["config", "set", "--store", &cluster.store(), network]);
    cluster.host(0).run(command).await.unwrap();
}

/// Waits until every node has only the backend of `network`, and says so.
pub(crate) async fn finished(cluster: &Cluster, network: &str) {
    let kind = kind(network);
    let is_done = |n: usize| {
        let lease = cluster.lease(n);
        let is_it = match kind.as_str() {
            // It has no name in a lease.
            "udp" => !lease.contains("BackendType"),
            kind => lease.contains(&format!(r#""BackendType":"{kind}""#)),
        };
        is_it && !lease.contains("SecondBackend") && record(cluster, n).contains(r#""beside":null"#)
    };
    let hosts = cluster.testbed.hosts().len();
    // The sync after the last says so, and takes over the route that refuses.
    // Not by a shell: busybox's has an ip of its own, which knows no nexthops.
    let ip = async |n: usize, show: &str| {
        #[expect(clippy::disallowed_methods, reason = "ip shows what administrators see")]
        let mut command = Command::new("ip");
        command.args(show.split(' '));
        cluster.host(n).run(command).await.unwrap()
    };
    let is_said = async |n: usize| {
        let (_, ready) = asked(&cluster.subnet_file(n).with_extension("sock"), "/readyz");
        let routes = ip(n, "route show table all").await + &ip(n, "nexthop show").await;
        let marks = ["proto 241", "proto 242"].map(|mark| routes.contains(mark));
        !ready.contains("migration") && marks[0] != marks[1]
    };
    let done = async {
        for n in 0..hosts {
            while !(is_done(n) && is_said(n).await) {
                sleep(LOOK).await;
            }
        }
    };
    if timeout(Duration::from_secs(90), done).await.is_err() {
        for n in 0..hosts {
            let status = asked(&cluster.subnet_file(n).with_extension("sock"), "/status").1;
            let routes = cluster.shell(n, "ip route show table all").await;
            println!("{n}: {}\n{status}\n{routes}", cluster.lease(n));
        }
        panic!("{network}: not finished");
    }
}

/// What a node remembers of its backends.
fn record(cluster: &Cluster, n: usize) -> String {
    fs::read_to_string(cluster.subnet_file(n).with_extension("backend.json")).unwrap_or_default()
}

fn kind(network: &str) -> String {
    let network: serde_json::Value = serde_json::from_str(network).unwrap();
    network["Backend"]["Type"].as_str().unwrap().to_owned()
}

/// Kills node 1 in each phase, and starts it again. The others, which are stopped, let each phase last.
async fn kill_in_each_phase(cluster: &Cluster, nodes: &mut [Process]) {
    comes_to(cluster, 1, |lease| lease.contains("next")).await;
    restart(cluster, &mut nodes[1]).await;
    // The first one does not say yet that it can be sent to by the new backend, and node 2 goes no further either.
    nodes[2].resume().unwrap();
    comes_to(cluster, 2, |lease| lease.contains("next")).await;
    // Not while it holds the store, which the others could not write to then.
    sleep(Duration::from_millis(500)).await;
    nodes[2].pause().unwrap();
    nodes[0].resume().unwrap();
    // Node 2 does not say yet that it is done with the old one.
    comes_to(cluster, 1, |lease| lease.contains("unused")).await;
    restart(cluster, &mut nodes[1]).await;
    assert!(cluster.lease(1).contains("unused"), "{}", cluster.lease(1));
    nodes[2].resume().unwrap();
    // The old one lingers for 10 s.
    comes_to(cluster, 1, |lease| !lease.contains("SecondBackend")).await;
    assert!(!record(cluster, 1).contains(r#""beside":null"#), "it is too late to kill it");
    restart(cluster, &mut nodes[1]).await;
}

/// Waits until a node's lease says that it has come to a phase.
async fn comes_to(cluster: &Cluster, n: usize, is_there: impl Fn(&str) -> bool) {
    let wait = async {
        while !is_there(&cluster.lease(n)) {
            sleep(LOOK).await;
        }
    };
    let is_in_time = timeout(Duration::from_secs(20), wait).await.is_ok();
    assert!(is_in_time, "node {n} has not come to a phase: {}", cluster.lease(n));
}

/// Kills node 1, and starts it again after a while.
async fn restart(cluster: &Cluster, node: &mut Process) {
    println!("killed: {}", cluster.lease(1));
    node.kill().unwrap();
    node.wait().await.unwrap();
    sleep(Duration::from_millis(500)).await;
    *node = cluster.start(1).await;
}

/// Lets node 1, which is stopped, go on after some seconds. The others wait for it, say so, and are ready.
async fn lag(cluster: &Cluster, node: &mut Process, network: &str) {
    sleep(Duration::from_secs(5)).await;
    let (code, ready) = asked(&cluster.subnet_file(0).with_extension("sock"), "/readyz");
    assert_eq!(code, 200, "{ready}");
    let name = format!("needed by {}", holder(cluster, 1));
    assert!(
        ready.contains("1 of 2 peers are sent to by") && ready.contains(&name),
        "{network}: {ready}"
    );
    node.resume().unwrap();
}

/// How the store names the node.
pub(crate) fn holder(cluster: &Cluster, n: usize) -> String {
    let id = fs::read_to_string(cluster.state_folder(n).join("node-id")).unwrap_or_default();
    id.trim().to_owned()
}

/// The devices of all hosts.
async fn devices(cluster: &Cluster) -> Vec<String> {
    let mut devices = Vec::new();
    for n in 0..HOSTS {
        let said = cluster.shell(n, "ip -o link show").await;
        let names = said.lines().filter_map(|line| line.split(": ").nth(1));
        devices.extend(names.map(|name| name.split('@').next().unwrap_or(name).to_owned()));
    }
    devices.sort();
    devices
}
