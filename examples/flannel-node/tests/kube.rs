//! Leases in Kubernetes: this program alone and beside the real flanneld, on hosts with an API server that has faults on demand.
#![expect(clippy::disallowed_methods, reason = "these tests are about the programs themselves")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use flannel_testbed::{Flanneld, Host, Pod, Process, Testbed, kube::FakeApiServer, probe, subnet};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Hosts, each with a Node called `node0` and so on, and an API server on host 0.
struct Cluster {
    server: FakeApiServer,
    testbed: Testbed,
    folder: TempDir,
}

impl Cluster {
    async fn new(hosts: u32, network: &str) -> Self {
        let testbed = Testbed::builder(hosts).default_route().build().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("net-conf.json"), network).unwrap();
        let (namespace, ip) = (testbed.host(0).namespace().clone(), testbed.host(0).ip());
        let address = SocketAddr::new(ip, 8080);
        let bind =
            move || namespace.run(|| TcpListener::bind(address)).map_err(std::io::Error::other)?;
        let server = FakeApiServer::start(bind).unwrap();
        let cluster = Self { server, testbed, folder };
        for n in 0..hosts {
            let blocks = [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")];
            let count = if network.contains("IPv6Network") { 2 } else { 1 };
            let blocks: Vec<_> = blocks.iter().map(String::as_str).take(count).collect();
            cluster.server.add_node(&format!("node{n}"), &blocks, true);
        }
        cluster
    }

    fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("run{n}/subnet.env"))
    }

    fn ours(&self, n: usize) -> Command {
        self.with_options(Command::new(env!("CARGO_BIN_EXE_flannel-node")), n)
    }

    fn theirs(&self, n: usize) -> Command {
        self.with_options(Command::new(Flanneld::path().unwrap()), n)
    }

    /// The options are the same for both.
    fn with_options(&self, mut command: Command, n: usize) -> Command {
        command.args(["-kube-subnet-mgr", "-iface=eth0"]);
        command.arg(format!("-kube-api-url={}", self.server.url()));
        command.arg("-net-config-path").arg(self.folder.path().join("net-conf.json"));
        command.arg("-subnet-file").arg(self.subnet_file(n));
        command.env("NODE_NAME", format!("node{n}"));
        command
    }

    async fn start_ours(&self, n: usize) -> Process {
        let mut process = self.host(n).spawn(self.ours(n)).unwrap();
        let ready = |line: &str| line.contains(" ready subnet=");
        process.line(Duration::from_secs(60), ready).await.unwrap();
        process
    }

    async fn start_theirs(&self, n: usize) -> Flanneld {
        Flanneld::start(self.host(n), self.theirs(n), &self.subnet_file(n)).await.unwrap()
    }

    /// A pod behind each host, all of which reach each other.
    async fn connected_pods(&self) -> Vec<Pod> {
        let mut pods = Vec::new();
        for n in 0..self.testbed.hosts().len() {
            pods.push(self.host(n).add_pod(subnet(&self.subnet_file(n))).await.unwrap());
        }
        eventually("pods reach each other", async || probe::reachability(&pods).await.complete())
            .await;
        pods
    }

    async fn shell(&self, n: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        self.host(n).run(command).await.unwrap()
    }

    /// A Node with the block 10.244.N.0/24 whose vxlan peer nobody runs.
    fn add_stranger(&self, name: &str, n: u8) {
        self.server.add_node(name, &[&format!("10.244.{n}.0/24")], true);
        let annotations = json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}"#),
            "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{n}"),
        });
        self.server.patch("nodes", name, &json!({"metadata": {"annotations": annotations}}));
    }

    /// What flannel's annotations of a node say.
    fn annotations(&self, n: usize) -> BTreeMap<String, String> {
        let node = self.server.get("nodes", &format!("node{n}")).unwrap();
        let all = node["metadata"]["annotations"].as_object().unwrap().clone();
        all.into_iter()
            .filter(|(name, _)| name.starts_with("flannel."))
            .map(|(name, value)| (name, value.as_str().unwrap().to_owned()))
            .collect()
    }

    /// The condition NetworkUnavailable of a node.
    fn condition(&self, n: usize) -> Option<Value> {
        let node = self.server.get("nodes", &format!("node{n}"))?;
        let all = node["status"]["conditions"].as_array()?.clone();
        all.into_iter().find(|it| it["type"] == "NetworkUnavailable")
    }

    /// The writes since the last call.
    fn writes(&self) -> Vec<String> {
        let asked = self.server.take_requests().into_iter();
        asked.filter(|it| it.method != "GET").map(|it| it.body).collect()
    }
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(90), wait).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

fn ipv4(backend: &str) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#)
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_vxlan() {
    beside_flanneld(&ipv4("vxlan"), 1).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_dual_stack_vxlan() {
    let network = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
    beside_flanneld(network, 2).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh kube"]
async fn both_programs_share_a_cluster_and_follow_each_other_by_host_gw() {
    beside_flanneld(&ipv4("host-gw"), 1).await;
}

/// Ours on host 0 and flanneld on host 1; then each takes the other's host over. Whoever comes finds nothing to write.
async fn beside_flanneld(network: &str, families: usize) {
    let cluster = Cluster::new(2, network).await;
    let mut ours = cluster.start_ours(0).await;
    let mut theirs = cluster.start_theirs(1).await;
    let pods = cluster.connected_pods().await;
    eventually("both tell their condition", async || {
        cluster.condition(0).is_some() && cluster.condition(1).is_some()
    })
    .await;
    let without_times = |n| {
        let mut condition = cluster.condition(n).unwrap();
        let times = ["lastHeartbeatTime", "lastTransitionTime"].map(|it| condition[it].take());
        assert!(times.iter().all(|it| it.as_str().unwrap().ends_with('Z')), "{times:?}");
        condition
    };
    assert_eq!(without_times(0), without_times(1));
    let names = |n| cluster.annotations(n).into_keys().collect::<Vec<_>>();
    assert_eq!((names(0), names(0).len()), (names(1), 2 + 2 * families));
    let written = [cluster.annotations(0), cluster.annotations(1)];
    // By all families that there are, in both directions.
    let mut streams = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        for ip in pods[to].endpoint().ips() {
            streams.push((ip.is_ipv6(), probe::stream(&pods[from], ip, 50).unwrap()));
        }
    }
    theirs.process().terminate().unwrap();
    theirs.process().wait().await.unwrap();
    cluster.writes();
    let _ours = cluster.start_ours(1).await;
    // Long enough for a condition to be told.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.writes(), [""; 0], "what flanneld wrote is what we would have written");
    ours.terminate().unwrap();
    ours.wait().await.unwrap();
    let _theirs = cluster.start_theirs(0).await;
    sleep(Duration::from_secs(2)).await;
    // flanneld tells its condition at each start.
    let writes = cluster.writes();
    assert!(writes.iter().all(|body| !body.contains("annotations")), "{writes:?}");
    assert_eq!([cluster.annotations(0), cluster.annotations(1)], written);
    for (is_ipv6, stream) in streams {
        timeout(Duration::from_secs(60), stream.flowing()).await.expect("packets flow");
        let report = stream.stop().await;
        // An IPv6 route that flanneld made is replaced by deleting it first.
        assert!(is_ipv6 || report.lost == 0, "{report}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn an_api_server_that_comes_and_goes_costs_no_packet() {
    let mut cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 100).unwrap();
    for round in 0..8_u8 {
        // Something changes while nobody listens.
        cluster.server.stop();
        let (name, block) = (format!("extra{round}"), format!("10.244.{}.0/24", 100 + round));
        cluster.add_stranger(&name, 100 + round);
        match round % 4 {
            1 => cluster.server.compact(),
            2 => cluster.server.behave(|it| it.expired_watches = 3),
            3 => cluster.server.behave(|it| it.watch_list = round % 8 == 7),
            _ => {}
        }
        cluster.server.resume().unwrap();
        for n in [0, 1] {
            eventually("the new node is a peer", async || {
                cluster.shell(n, "ip route").await.contains(&block)
            })
            .await;
        }
    }
    cluster.server.delete("nodes", "extra7");
    for n in [0, 1] {
        eventually("a deleted node is no peer", async || {
            !cluster.shell(n, "ip route").await.contains("10.244.107.0/24")
        })
        .await;
    }
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn an_api_server_that_is_killed_a_hundred_times_while_nodes_come_and_go_costs_no_packet() {
    let mut cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 100).unwrap();
    let mut blocks = BTreeSet::new();
    for round in 0..100_u8 {
        cluster.server.stop();
        let n = 100 + round % 9;
        let name = format!("extra{n}");
        // Every fourth time the Node goes, and else it comes, perhaps in the place of one of that name.
        cluster.server.delete("nodes", &name);
        blocks.remove(&n);
        if round % 4 != 3 {
            cluster.add_stranger(&name, n);
            blocks.insert(n);
        }
        if round % 5 == 0 {
            cluster.server.compact();
        }
        cluster.server.behave(|it| it.watch_list = round % 6 != 1);
        cluster.server.resume().unwrap();
        sleep(Duration::from_millis([0, 5, 50, 300][usize::from(round % 4)])).await;
    }
    // Whoever went while history was lost has two minutes more.
    for host in [0, 1] {
        eventually("all Nodes are peers", async || {
            let routes = cluster.shell(host, "ip route").await;
            blocks.iter().all(|n| routes.contains(&format!("10.244.{n}.0/24")))
        })
        .await;
    }
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_node_object_that_is_made_anew_has_its_peers_again() {
    let cluster = Cluster::new(2, &ipv4("host-gw")).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    for _ in 0..2 {
        cluster.server.delete("nodes", "node1");
        sleep(Duration::from_secs(2)).await;
        cluster.server.add_node("node1", &["10.244.1.0/24"], true);
        eventually("it says again who it is", async || cluster.annotations(1).len() == 4).await;
        eventually("pods reach each other", async || probe::reachability(&pods).await.complete())
            .await;
    }
    // What somebody removes of it comes back.
    let none = json!({"flannel.alpha.coreos.com/public-ip": null});
    cluster.server.patch("nodes", "node1", &json!({"metadata": {"annotations": none}}));
    eventually("it says again where it is", async || cluster.annotations(1).len() == 4).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_restart_without_the_api_server_repairs_the_data_path() {
    let mut cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let mut first = cluster.start_ours(0).await;
    let _second = cluster.start_ours(1).await;
    let pods = cluster.connected_pods().await;
    let state = cluster.subnet_file(0).with_file_name("kubernetes.json");
    eventually("the last state is kept", async || {
        fs::read_to_string(&state).is_ok_and(|it| it.contains("10.244.1.0-24"))
    })
    .await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 100).unwrap();
    cluster.server.stop();
    first.kill().unwrap();
    first.wait().await.unwrap();
    // Meanwhile somebody breaks it.
    cluster.shell(0, "ip route del 10.244.1.0/24").await;
    let _again = cluster.start_ours(0).await;
    timeout(Duration::from_secs(60), stream.flowing()).await.expect("packets flow");
    cluster.server.resume().unwrap();
    cluster.add_stranger("node7", 7);
    eventually("it follows the API server again", async || {
        cluster.shell(0, "ip route").await.contains("10.244.7.0/24")
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_node_object_that_was_made_anew_meanwhile_puts_the_last_state_right() {
    let mut cluster = Cluster::new(1, &ipv4("host-gw")).await;
    let mut first = cluster.start_ours(0).await;
    let state = cluster.subnet_file(0).with_file_name("kubernetes.json");
    eventually("the last state is kept", async || {
        fs::read_to_string(&state).is_ok_and(|it| it.contains("10.244.0.0-24"))
    })
    .await;
    cluster.server.stop();
    first.kill().unwrap();
    first.wait().await.unwrap();
    let _again = cluster.start_ours(0).await;
    assert_eq!(subnet(&cluster.subnet_file(0)).to_string(), "10.244.0.0/24");
    // Another Node of that name, with another block.
    cluster.server.delete("nodes", "node0");
    cluster.server.add_node("node0", &["10.244.9.0/24"], true);
    cluster.server.resume().unwrap();
    eventually("it has the block of the new Node", async || {
        subnet(&cluster.subnet_file(0)).to_string() == "10.244.9.0/24"
    })
    .await;
    eventually("it says who it is", async || cluster.annotations(0).len() == 4).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn a_node_without_a_block_waits_and_says_what_for() {
    let cluster = Cluster::new(1, &ipv4("host-gw")).await;
    cluster.server.delete("nodes", "node0");
    cluster.server.add_node("node0", &[], true);
    let mut process = cluster.host(0).spawn(cluster.ours(0)).unwrap();
    let waits = |line: &str| line.contains("node0 has no spec.podCIDR yet");
    process.line(Duration::from_secs(60), waits).await.unwrap();
    let spec = json!({"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]});
    cluster.server.patch("nodes", "node0", &json!({ "spec": spec }));
    let ready = |line: &str| line.contains(" ready subnet=");
    process.line(Duration::from_secs(60), ready).await.unwrap();
    assert_eq!(subnet(&cluster.subnet_file(0)).to_string(), "10.244.9.0/24");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn what_is_wrong_with_a_peer_is_an_event_of_the_node() {
    let cluster = Cluster::new(1, &ipv4("host-gw")).await;
    let _node = cluster.start_ours(0).await;
    cluster.server.add_node("node7", &["10.244.7.0/24"], false);
    let annotations = json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": "null",
        "flannel.alpha.coreos.com/public-ip": "192.0.2.7",
    });
    cluster.server.patch("nodes", "node7", &json!({"metadata": {"annotations": annotations}}));
    let events = || {
        let keys = cluster.server.names("events").into_iter();
        keys.map(|key| cluster.server.get("events", &key).unwrap()).collect::<Vec<_>>()
    };
    eventually("it is told", async || !events().is_empty()).await;
    let [event] = &events()[..] else { panic!("{:?}", events()) };
    assert_eq!((&event["reason"], &event["type"]), (&json!("PeerOtherBackend"), &json!("Warning")));
    let message = event["message"].as_str().unwrap();
    assert!(message.starts_with("peer 10.244.7.0-24 at 192.0.2.7: it uses"), "{message}");
    assert_eq!(event["involvedObject"]["name"], "node0");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn kubectl_flannel_shows_nodes_and_explains_paths_from_both_ends() {
    let cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let mut nodes = Vec::new();
    for n in [0, 1] {
        let mut command = cluster.ours(n);
        command.args(["-healthz-port=8081", "-healthz-explain"]);
        let mut node = cluster.host(n).spawn(command).unwrap();
        let ready = |line: &str| line.contains(" ready subnet=");
        node.line(Duration::from_secs(60), ready).await.unwrap();
        nodes.push(node);
    }
    let pods = cluster.connected_pods().await;
    let mut hosts = Vec::new();
    for n in [0, 1] {
        let object = |name: &str, ip: std::net::IpAddr, labels: Value| {
            json!({
                "metadata": {"name": name, "labels": labels},
                "spec": {"nodeName": format!("node{n}"), "containers": [{"image": "flannel-node"}]},
                "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
            })
        };
        let (flannel, host) = (format!("flannel-{n}"), cluster.host(n));
        let object_of_flannel = object(&flannel, host.ip(), json!({"app": "flannel"}));
        cluster.server.put("pods", &format!("kube-flannel/{flannel}"), object_of_flannel);
        let web = object(&format!("web-{n}"), pods[n].ip(), json!({}));
        cluster.server.put("pods", &format!("default/web-{n}"), web);
        hosts.push((host.namespace().clone(), SocketAddr::new(host.ip(), 8081)));
    }
    // The API server's proxy, from the host itself.
    cluster.server.answer_with(move |request| {
        let (_, rest) = request.path.split_once("/pods/flannel-")?;
        let (n, path) = rest.split_once("%3A8081/proxy")?;
        let (namespace, address) = &hosts[n.parse::<usize>().ok()?];
        let text = namespace.run(|| {
            let mut stream = TcpStream::connect(address)?;
            write!(stream, "GET {path}?{} HTTP/1.0\r\n\r\n", request.query)?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        let text = text.ok()?.ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    });
    let config = cluster.folder.path().join("kubeconfig");
    let text = json!({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k"}}],
        "clusters": [{"name": "k", "cluster": {"server": cluster.server.url()}}],
    });
    fs::write(&config, text.to_string()).unwrap();
    // As kubectl finds and starts it.
    let program = cluster.folder.path().join("kubectl-flannel");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flannel-node"), &program).unwrap();
    let kubectl = async |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).env("KUBECONFIG", &config);
        cluster.host(0).run(command).await
    };
    let shown = kubectl(&["status"]).await.unwrap();
    let lines: Vec<Vec<&str>> = shown.lines().map(|it| it.split_whitespace().collect()).collect();
    let address = cluster.host(1).ip().to_string();
    let expected = ["node1", "10.244.1.0/24", &address, "vxlan", "1450", "yes", "-"];
    assert_eq!((lines.len(), &lines[2][..]), (3, &expected[..]), "{shown}");
    let shown = kubectl(&["explain", "web-0", "default/web-1"]).await.unwrap();
    let fine = "reach each other, as far as this host can tell";
    assert_eq!(shown.matches(fine).count(), 2, "{shown}");
    // The other end only knows.
    cluster.shell(1, "nft add table ip t; nft add chain ip t c '{ type filter hook forward priority 0; }'; nft add rule ip t c ip saddr 10.244.0.0/24 drop").await;
    let shown = kubectl(&["explain", "web-0", "web-1"]).await.unwrap_err().to_string();
    let (of_first, of_second) = shown.split_once("node1 says:").expect("both are asked");
    assert!(of_first.contains("node0 says:"), "{shown}");
    assert!(of_second.contains("broken") && of_second.contains("drop"), "{shown}");
}
