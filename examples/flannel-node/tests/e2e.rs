//! The program itself on real hosts, with real packets.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flannel_testbed::{Blocks, Host, Pod, Process, Testbed, probe};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#;

const DUAL_VXLAN: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
const IPV4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// A cluster of processes over one folder, or over an etcd on host 0.
struct Cluster {
    testbed: Testbed,
    folder: TempDir,
    network: &'static str,
    etcd: bool,
}

impl Cluster {
    async fn new(hosts: u32, network: &'static str) -> Self {
        let testbed = Testbed::builder(hosts).build().await.unwrap();
        Self { testbed, folder: tempfile::tempdir().unwrap(), network, etcd: false }
    }

    fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("{n}.env"))
    }

    fn command(&self, n: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
        if self.etcd {
            command.arg(format!("-etcd-endpoints=http://{}:2379", self.host(0).ip()));
        } else {
            command.arg(format!("-store=file:{}", self.folder.path().join("store").display()));
        }
        command.args(["-iface=eth0", "-network", self.network]);
        command.arg("-subnet-file").arg(self.subnet_file(n));
        command.arg("-state-dir").arg(self.folder.path().join(format!("{n}.state")));
        command
    }

    /// Starts etcd on host 0, on the data that it had before if it ran already.
    async fn start_etcd(&self) -> Process {
        let (ip, data) = (self.host(0).ip(), self.folder.path().join("etcd"));
        let clients = format!("http://{ip}:2379");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        let mut etcd = self.host(0).spawn(command).expect("etcd: apt-get install etcd-server");
        let serves = |line: &str| line.contains("serving insecure client requests");
        etcd.line(Duration::from_secs(20), serves).await.unwrap();
        etcd
    }

    async fn start(&self, n: usize) -> Process {
        let mut process = self.host(n).spawn(self.command(n)).unwrap();
        process
            .line(Duration::from_secs(20), |line| line.contains(" ready subnet="))
            .await
            .unwrap();
        process
    }

    /// The blocks that a host's `subnet.env` names.
    fn subnet(&self, n: usize) -> Blocks {
        let env = fs::read_to_string(self.subnet_file(n)).unwrap();
        let blocks = env.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            key.ends_with("_SUBNET").then_some(value)
        });
        blocks.collect::<Vec<_>>().join(",").parse().unwrap()
    }

    /// The only route's next hop is not of interest here; that there is one is.
    async fn knows(&self, n: usize, peer: usize) -> bool {
        let snapshot = self.host(n).snapshot().await.unwrap().to_string();
        self.subnet(peer).iter().all(|block| snapshot.contains(&block.to_string()))
    }

    async fn pods(&self, hosts: usize) -> Vec<Pod> {
        let mut pods = Vec::new();
        for n in 0..hosts {
            pods.push(self.host(n).add_pod(self.subnet(n)).await.unwrap());
        }
        pods
    }
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), wait).await.expect("within ten seconds");
}

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
    let stream = probe::stream(&pods[0], pods[1].ip(), 20).unwrap();
    let back = probe::stream(&pods[1], pods[0].ip(), 20).unwrap();
    for kill in [true, false, true] {
        stream.flowing().await;
        let asked = Instant::now();
        if kill {
            first.kill().unwrap()
        } else {
            first.terminate().unwrap()
        }
        let status = first.wait().await.unwrap();
        assert!(kill || status.success(), "{status}");
        assert!(asked.elapsed() < Duration::from_secs(1));
        stream.flowing().await;
        fs::remove_file(cluster.subnet_file(0)).unwrap();
        first = cluster.start(0).await;
        assert_eq!(cluster.subnet(0), subnet);
    }
    for report in [stream.stop().await, back.stop().await] {
        assert_eq!(report.lost, 0, "{report}");
    }
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
    node.line(Duration::from_secs(20), |line| line.contains(" ready subnet=")).await.unwrap();
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
        let named = |line: &str| line.contains("joining") && line.ends_with(&address);
        node.line(Duration::from_secs(20), named).await.unwrap();
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

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_demo_shows_a_cluster_breaks_it_and_ends_well() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
    let output = demo.args(["demo", "--hosts", "3"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("9 of 9 pairs reach each other").count(), 2, "{text}");
    assert!(text.contains("the route was back after"), "{text}");
}

/// What a node answers on its local socket: the code, and the body.
fn asked(socket: &Path, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn readiness_names_what_is_missing_and_comes_back() {
    let mut cluster = Cluster::new(2, IPV4).await;
    cluster.etcd = true;
    let mut command = cluster.command(0);
    command.args(["-lease-ttl=5", "-healthz-port=8081"]);
    let mut node = cluster.host(0).spawn(command).unwrap();
    node.line(Duration::from_secs(20), |line| line.contains("answering /healthz")).await.unwrap();
    let socket = cluster.subnet_file(0).with_extension("sock");
    eventually(async || socket.exists()).await;
    let ready = || asked(&socket, "/readyz");

    // No store yet.
    eventually(async || ready().1.contains("start: cannot")).await;
    assert_eq!(ready().0, 503);
    assert_eq!(asked(&socket, "/healthz").0, 200);

    let mut etcd = cluster.start_etcd().await;
    let _peer = cluster.start(1).await;
    eventually(async || ready().0 == 200).await;
    eventually(async || cluster.knows(0, 1).await).await;

    // A route that somebody removes is counted and written down.
    let block = cluster.subnet(1).ipv4().unwrap();
    cluster.host(0).delete_route(block).await.unwrap();
    let repaired = |line: &str| line == "flannel_drift_repaired_total{kind=\"route\"} 1";
    eventually(async || asked(&socket, "/metrics").1.lines().any(repaired)).await;
    let status = Command::new(env!("CARGO_BIN_EXE_flannel-node"))
        .arg("status")
        .arg("-subnet-file")
        .arg(cluster.subnet_file(0))
        .output()
        .unwrap();
    let page = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success(), "{page}");
    let entry = format!("repair   route {block}");
    for words in ["ready        yes", "peers        1", &entry, "recovery can set up the network"] {
        assert!(page.contains(words), "no {words:?} in:\n{page}");
    }

    // subnet.env goes.
    fs::remove_file(cluster.subnet_file(0)).unwrap();
    assert_eq!(ready(), (503, "flannel-node is not ready\nsubnet.env: not there\n".into()));
    eventually(async || ready().0 == 200).await;

    // The store goes: known, and no reason not to serve pods, until the lease may be somebody else's.
    etcd.kill().unwrap();
    etcd.wait().await.unwrap();
    eventually(async || ready().1.contains("store: offline")).await;
    assert_eq!(ready().0, 200);
    eventually(async || ready().1.contains("lease: somebody else may have it")).await;
    assert_eq!(ready().0, 503);
    let offline =
        |line: &str| line.starts_with("flannel_store_outage_seconds ") && !line.ends_with(" 0");
    assert!(asked(&socket, "/metrics").1.lines().any(offline));
    let _etcd = cluster.start_etcd().await;
    eventually(async || ready().0 == 200).await;

    node.terminate().unwrap();
    assert!(node.wait().await.unwrap().success());
    assert!(!socket.exists());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_loop_that_hangs_is_not_alive_and_the_supervisor_is_told_all() {
    let cluster = Cluster::new(1, IPV4).await;
    let path = cluster.folder.path().join("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_nonblocking(true).unwrap();
    let heard = || {
        let mut buffer = [0; 1024];
        let count = supervisor.recv(&mut buffer).ok()?;
        String::from_utf8(buffer[..count].to_vec()).ok()
    };
    let mut command = cluster.command(0);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut node = cluster.host(0).spawn(command).unwrap();
    let mut all = String::new();
    eventually(async || {
        all.extend(heard());
        all.contains("READY=1\nSTATUS=holds 10.244.") && all.matches("WATCHDOG=1").count() > 2
    })
    .await;
    node.pause().unwrap();
    while heard().is_some() {}
    sleep(Duration::from_millis(300)).await;
    assert_eq!(heard(), None, "a node that stands still shows signs of life");
    node.resume().unwrap();
    node.terminate().unwrap();
    let asked = Instant::now();
    assert!(node.wait().await.unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(1));
    let mut all = String::new();
    while let Some(news) = heard() {
        all += &news;
    }
    assert!(all.contains("STOPPING=1"), "{all}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn teardown_removes_what_a_node_made_and_nothing_else() {
    for network in [DUAL, DUAL_VXLAN] {
        let cluster = Cluster::new(2, network).await;
        let host = cluster.host(0);
        // Somebody else's, in the middle of the network.
        host.add_route("10.244.250.0/24".parse::<ipnetwork::IpNetwork>().unwrap(), cluster.host(1))
            .await
            .unwrap();
        let before = host.snapshot().await.unwrap().to_string();
        let mut node = cluster.start(0).await;
        let peer = cluster.start(1).await;
        eventually(async || cluster.knows(0, 1).await).await;
        let teardown = async |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
            command.arg("teardown").arg("-subnet-file").arg(cluster.subnet_file(0)).args(more);
            let mut process = host.spawn(command).unwrap();
            let status = process.wait().await.unwrap();
            (status.code(), process.output().join("\n"))
        };
        let (code, said) = teardown(&[]).await;
        assert_eq!(code, Some(1));
        assert!(said.contains("stop it first"), "{said}");
        let subnet = cluster.subnet(0);

        node.kill().unwrap();
        node.wait().await.unwrap();
        assert_ne!(host.snapshot().await.unwrap().to_string(), before);
        let (code, said) = teardown(&[]).await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(host.snapshot().await.unwrap().to_string(), before, "{said}");
        assert!(!cluster.subnet_file(0).exists());

        // The lease is still ours, and is given back when asked for.
        let mut node = cluster.start(0).await;
        assert_eq!(cluster.subnet(0), subnet);
        node.terminate().unwrap();
        node.wait().await.unwrap();
        let leases = cluster.folder.path().join("store/subnets");
        let count = || {
            fs::read_dir(&leases)
                .unwrap()
                .filter(|entry| {
                    !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')
                })
                .count()
        };
        assert_eq!(count(), 2);
        let store = format!("-store=file:{}", cluster.folder.path().join("store").display());
        let (code, said) = teardown(&[&store, "--release", "--node-id=other"]).await;
        assert_eq!((code, count()), (Some(1), 2), "{said}");
        assert!(said.contains("does not look like this node"), "{said}");
        let state = format!("--state-dir={}", cluster.folder.path().join("0.state").display());
        let (code, said) = teardown(&[&store, "--release", &state]).await;
        assert_eq!((code, count()), (Some(0), 1), "{said}");
        assert_eq!(host.snapshot().await.unwrap().to_string(), before);
        drop(peer);
    }
}
