//! What operators and supervisors see of a node.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

use flannel_testbed::eventually;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, DUAL, DUAL_VXLAN, IPV4};

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
        // Somebody else's, to a part of the network that no node gets.
        host.add_route("10.244.0.0/24".parse::<ipnetwork::IpNetwork>().unwrap(), cluster.host(1))
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
        let running = host.snapshot().await.unwrap().to_string();
        let (code, said) = teardown(&[&store, "--release", "--node-id=other"]).await;
        assert_eq!((code, count()), (Some(1), 2), "{said}");
        assert_eq!(host.snapshot().await.unwrap().to_string(), running, "nothing is removed");
        assert!(said.contains("does not look like this node"), "{said}");
        let state = format!("--state-dir={}", cluster.folder.path().join("0.state").display());
        let (code, said) = teardown(&[&store, "--release", &state]).await;
        assert_eq!((code, count()), (Some(0), 1), "{said}");
        assert_eq!(host.snapshot().await.unwrap().to_string(), before);
        drop(peer);
    }
}
