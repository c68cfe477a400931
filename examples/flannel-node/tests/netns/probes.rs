//! Nodes that look at the ways to their peers, on ways that are bad.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Duration,
};

use flannel_netlink::{Features, link_by_name};
use flannel_testbed::{Pod, Process, eventually, probe::Ping};
use serde_json::Value;

use super::{
    narrowing::{self, path, path_of, probing},
    support::{Cluster, HOST_GW, VXLAN, program},
};

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
const PATIENCE: Duration = Duration::from_secs(60);

async fn end(mut node: Process) {
    node.terminate().unwrap();
    node.wait().await.unwrap();
}

/// Has nft do something on the switch between the hosts, and says what it printed.
fn nft(cluster: &Cluster, commands: &str) -> String {
    let run = || Command::new("nft").arg(commands).output().unwrap();
    let output = cluster.testbed.switch().run(run).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The sum that stands in the place of a UDP checksum as long as nobody has computed it: that of the pseudo-header.
fn uncomputed(from: Ipv4Addr, to: Ipv4Addr, size: u16) -> u32 {
    let words = |ip: Ipv4Addr| {
        let [a, b, c, d] = ip.octets();
        u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]))
    };
    let sum = words(from) + words(to) + 17 + u32::from(size - 20);
    (sum & 0xffff) + (sum >> 16)
}

fn ipv4(pod: &Pod) -> Ipv4Addr {
    match pod.ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip}"),
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn nobody_is_asked_unless_it_is_wanted_and_who_does_not_answer_is_no_trouble() {
    let cluster = Cluster::new(2, DUAL).await;
    nft(
        &cluster,
        "add table bridge t; add chain bridge t c { type filter hook forward priority 0; }; \
         add rule bridge t c udp dport 8286 counter; add rule bridge t c udp dport 8472 counter",
    );
    let (mut nodes, pods) = cluster.start_all().await;
    assert_eq!(cluster.status(0).await["probing"], Value::Null);
    assert_eq!(path(&cluster).await, Value::Null);
    pods[0].ping(pods[1].ip()).await.unwrap();
    let counted = nft(&cluster, "list ruleset");
    let rule = |port: &str| counted.lines().find(|line| line.contains(port)).unwrap().to_owned();
    assert!(rule("8286").contains("packets 0 "), "{counted}");
    assert!(!rule("8472").contains("packets 0 "), "the others are counted: {counted}");

    end(nodes.remove(0)).await;
    let node = probing(&cluster, 0).await;
    eventually(async || path(&cluster).await["state"] == "no_answer").await;
    let warnings: Vec<_> = node.output().into_iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings, [""; 0]);
    let counted = nft(&cluster, "list ruleset");
    assert!(
        counted.lines().any(|it| it.contains("8286") && !it.contains("packets 0 ")),
        "{counted}"
    );

    end(nodes.remove(0)).await;
    let _other = probing(&cluster, 1).await;
    // Whoever asks can answer.
    eventually(async || path(&cluster).await["state"] == "enough").await;
    for family in ["ipv4", "ipv6"] {
        eventually(async || path_of(&cluster, 0, family).await["overlay_checksums"] == "intact")
            .await;
        let found = path_of(&cluster, 0, family).await;
        assert_eq!(
            (&found["state"], &found["underlay_checksums"]),
            (&"enough".into(), &"intact".into())
        );
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_link_that_loses_large_packets_is_found_told_and_respected() {
    for (network, inside) in [(VXLAN, 50), (HOST_GW, 0)] {
        let cluster = Cluster::new(2, network).await;
        cluster.host(1).set_path_mtu(1400).await.unwrap();
        let mtu = 1400;
        let (nodes, pods) = cluster.start_all().await;
        let [near, far] = &pods[..] else { unreachable!() };
        let whole = 1500 - inside;
        let full = || Ping::default().size(whole).timeout(Duration::from_millis(500));
        near.ping_with(far.ip(), full()).await.unwrap_err();
        for node in nodes {
            end(node).await;
        }

        let mut first = probing(&cluster, 0).await;
        let _second = probing(&cluster, 1).await;
        let told = |line: &str| {
            line.contains(&format!("the path MTU is {mtu}, and 1500 are needed"))
                && line.contains("WARN")
        };
        first.line(PATIENCE, told).await.unwrap();
        let found = path(&cluster).await;
        assert_eq!((&found["mtu"], &found["needed"]), (&mtu.into(), &1500.into()), "{found}");
        let route = async || {
            let mut connection = cluster.host(0).connect().unwrap();
            let block: ipnetwork::IpNetwork = cluster.subnet(1).ipv4().unwrap().into();
            let family = flannel_netlink::state::IpFamily::V4;
            let main = flannel_netlink::state::Route::MAIN;
            let routes = flannel_netlink::list_routes(&mut connection, main, family).await.unwrap();
            routes.into_iter().find(|route| route.destination == block).unwrap()
        };
        eventually(async || route().await.mtu == Some(mtu - inside as u32)).await;
        // What may be cut is cut where it still may be, and what may not comes back with the size that passes.
        eventually(async || near.ping_with(far.ip(), full()).await.is_ok()).await;
        let exact = Ping::default().size(mtu as usize - inside).unfragmented();
        near.ping_with(far.ip(), exact).await.unwrap();

        let mut explain = Command::new(program());
        explain.arg("explain").args([near.ip().to_string(), far.ip().to_string()]);
        explain.args(["--store", &cluster.store()]);
        explain.arg("--subnet-file").arg(cluster.subnet_file(0));
        let mut explain = cluster.host(0).spawn(explain).unwrap();
        assert_eq!(explain.wait().await.unwrap().code(), Some(1));
        let said = explain.output().join("\n");
        assert!(said.contains("path MTU") && said.contains(&format!("is {mtu}")), "{said}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_link_that_takes_less_later_is_respected_in_five_seconds() {
    for network in [VXLAN, HOST_GW] {
        narrowing::is_respected_in_five_seconds(network).await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn checksums_that_nobody_computes_are_found_and_computed() {
    let cluster = Cluster::new(2, VXLAN).await;
    let (nodes, pods) = cluster.start_all().await;
    let [near, far] = &pods[..] else { unreachable!() };
    let blocks = [0, 1].map(|n| cluster.subnet(n).ipv4().unwrap().network());
    // What the broken network card of the first host does: packets inside of VXLAN leave with the checksum that was left to it, and
    // get lost. The sums are those of a question to the peer, and of a datagram of 200 bytes between the pods.
    let sums = [uncomputed(blocks[0], blocks[1], 52), uncomputed(ipv4(near), ipv4(far), 200)];
    let [question, between] = sums;
    let of_first = format!("ip saddr {} udp dport 8472", cluster.host(0).ip());
    nft(
        &cluster,
        &format!(
            "add table bridge t; add chain bridge t c {{ type filter hook forward priority 0; }}; \
             add rule bridge t c {of_first} @th,448,16 {question:#x} drop; \
             add rule bridge t c {of_first} @th,448,16 {between:#x} drop"
        ),
    );
    let datagram = || Ping::default().size(200).timeout(Duration::from_millis(500));
    near.ping_with(far.ip(), datagram()).await.unwrap_err();
    for node in nodes {
        end(node).await;
    }

    let mut first = probing(&cluster, 0).await;
    let mut second = probing(&cluster, 1).await;
    let switched = |line: &str| line.contains("tx-checksum-ip-generic switched off");
    first.line(PATIENCE, switched).await.unwrap();
    near.ping_with(far.ip(), datagram()).await.unwrap();
    let told =
        |line: &str| line.contains("WARN") && line.contains("packets through flannel.1 whose");
    first.line(PATIENCE, told).await.unwrap();
    let over = |line: &str| line.contains("packets through flannel.1 arrive again");
    first.line(PATIENCE, over).await.unwrap();
    let probing = cluster.status(0).await["probing"].clone();
    assert_eq!(probing["software_checksums"], serde_json::json!(["ipv4"]), "{probing}");

    let leaves = async |n: usize| {
        let mut connection = cluster.host(n).connect().unwrap();
        let link = link_by_name(&mut connection, "flannel.1").await.unwrap().unwrap();
        let mut features = Features::open(cluster.host(n).namespace()).unwrap();
        features.get(link.index, Features::TX_CHECKSUM).await.unwrap()
    };
    assert_eq!(leaves(0).await, Some(false));
    // The way back is not broken, and was left alone.
    eventually(async || path_of(&cluster, 1, "ipv4").await["overlay_checksums"] == "intact").await;
    assert_eq!(leaves(1).await, Some(true));
    assert!(!second.output().iter().any(|line| line.contains("switched off")));
    end(first).await;
    second.terminate().unwrap();
    second.wait().await.unwrap();
    assert_eq!(leaves(0).await, Some(false), "it stays with the data path");
}
