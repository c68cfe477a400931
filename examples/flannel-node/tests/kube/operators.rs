//! What operators see and ask.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, ipv4};

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
        let object = |name: &str, ip: IpAddr, labels: Value| {
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
        Some((head.split(' ').nth(1)?.parse().ok()?, body.into()))
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

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn explain_on_a_host_takes_the_leases_of_the_cluster() {
    let mut cluster = Cluster::new(2, &ipv4("vxlan")).await;
    let _nodes = [cluster.start_ours(0).await, cluster.start_ours(1).await];
    let pods = cluster.connected_pods().await;
    let explain = async |cluster: &Cluster| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
        command.args(["explain", "--kube-subnet-mgr", "--subnet-file"]).arg(cluster.subnet_file(0));
        command.arg("--net-config-path").arg(cluster.folder.path().join("net-conf.json"));
        command.args(["--kube-api-url", &cluster.server.url()]).env("NODE_NAME", "node0");
        command.args([pods[0].ip().to_string(), pods[1].ip().to_string()]);
        cluster.host(0).run(command).await
    };
    let shown = explain(&cluster).await.unwrap();
    assert!(shown.contains("reach each other"), "{shown}");
    let writes = cluster.writes();
    explain(&cluster).await.unwrap();
    assert!(cluster.writes().is_empty(), "it only looks, after {writes:?}");
    cluster.server.delete("nodes", "node1");
    let shown = explain(&cluster).await.unwrap_err().to_string();
    assert!(shown.contains("no lease"), "{shown}");
    let state = cluster.subnet_file(0).with_file_name("kubernetes.json");
    fs::remove_file(&state).ok();
    cluster.server.stop();
    let shown = explain(&cluster).await.unwrap_err().to_string();
    assert!(shown.contains("store") && shown.contains("connect"), "{shown}");
}
