//! What the program says of packets that it carries itself.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{
    io::{Read, Write},
    net::UdpSocket,
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
};

use flannel_testbed::eventually;
use serde_json::Value;

#[path = "vm/capture.rs"]
mod capture;
#[path = "netns/dropping.rs"]
mod dropping;
#[path = "netns/encrypting.rs"]
mod encrypting;
#[path = "netns/large_packets.rs"]
mod large_packets;
#[path = "netns/migrating.rs"]
mod migrating;
#[path = "netns/narrowing.rs"]
mod narrowing;
#[path = "netns/outer_rules.rs"]
mod outer_rules;
#[path = "netns/renumbering.rs"]
mod renumbering;
#[path = "netns/required_encryption.rs"]
mod required_encryption;
#[path = "netns/support.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod support;

use migrating::{Trouble, loses_nothing};
use support::{Cluster, HOST_GW, VXLAN, program};

const USERSPACE: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","SourceCheck":"subnet","Engine":"userspace"}}"#;
const EBPF: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","SourceCheck":"subnet","Engine":"ebpf"}}"#;
const WIREGUARD: &str = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"wireguard","Engine":"userspace"}}"#;
const WIREGUARD_2: &str = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"wireguard-2","Engine":"userspace"}}"#;

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn threads_that_carry_packets_are_in_the_status_and_the_metrics() {
    shown(USERSPACE, "userspace").await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn programs_that_carry_packets_are_in_the_status_and_the_metrics() {
    shown(EBPF, "ebpf").await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn what_no_pod_has_is_dropped_if_asked_and_what_pods_have_is_not() {
    for network in [USERSPACE, EBPF] {
        dropping::comes_if_asked_and_goes(network).await;
    }
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_link_that_takes_less_later_is_respected_in_five_seconds() {
    for network in [USERSPACE, EBPF] {
        narrowing::is_respected_in_five_seconds(network).await;
    }
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn another_address_costs_200_ms_at_most() {
    for network in [USERSPACE, EBPF] {
        renumbering::costs_little(network).await;
    }
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn nodes_move_between_udp_and_others_without_a_lost_packet() {
    loses_nothing(&[EBPF, VXLAN, EBPF, HOST_GW, EBPF], Trouble::Nothing).await;
    loses_nothing(&[USERSPACE, VXLAN, USERSPACE, HOST_GW, USERSPACE], Trouble::Nothing).await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn nodes_move_between_wireguard_and_others_without_a_lost_packet() {
    // In its sandbox, a node that has started without programs may load none later.
    let networks = [EBPF, WIREGUARD, VXLAN, WIREGUARD, HOST_GW, WIREGUARD, EBPF];
    loses_nothing(&networks, Trouble::Nothing).await;
    loses_nothing(&[USERSPACE, WIREGUARD, USERSPACE], Trouble::Nothing).await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn large_packets_get_through_while_nodes_move_to_a_backend_that_takes_less() {
    large_packets::get_through(HOST_GW, WIREGUARD, 1420).await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn clear_text_ends_when_the_last_peer_has_moved() {
    encrypting::ends_with_the_last_peer(HOST_GW, WIREGUARD).await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn keys_are_rotated_without_a_lost_packet_and_none_is_in_the_clear() {
    encrypting::get_new_keys(WIREGUARD, WIREGUARD_2).await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn nodes_of_both_families_move_without_a_lost_packet() {
    let dual = |backend: &str| -> &'static str {
        let families = r#""EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#;
        format!(
            r#"{{"Network":"10.244.0.0/16",{families},"EnableNFTables":true,"Backend":{backend}}}"#
        )
        .leak()
    };
    let [vxlan, host_gw] = [r#"{"Type":"vxlan"}"#, r#"{"Type":"host-gw"}"#].map(dual);
    let udp = dual(r#"{"Type":"udp","Engine":"ebpf"}"#);
    let wireguard = dual(r#"{"Type":"wireguard","Engine":"userspace"}"#);
    let networks = [udp, vxlan, wireguard, host_gw, udp, wireguard, vxlan, host_gw, vxlan];
    loses_nothing(&networks, Trouble::Nothing).await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_node_that_is_killed_or_lags_in_a_migration_of_udp_loses_no_packet() {
    for trouble in [Trouble::Killed, Trouble::Lags] {
        loses_nothing(&[EBPF, VXLAN, EBPF], trouble).await;
    }
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn rules_of_the_host_drop_what_is_documented() {
    let wireguard =
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","Engine":"userspace"}}"#;
    outer_rules::are_obeyed_as_documented(&[
        ("`vxlan`", VXLAN),
        ("`udp`, `userspace`", USERSPACE),
        ("`udp`, `ebpf`", EBPF),
        ("`wireguard`, `userspace`", wireguard),
    ])
    .await;
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn rules_of_the_host_drop_what_is_documented_with_ipv6() {
    macro_rules! ipv6 {
        ($backend:literal) => {
            concat!(
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":"#,
                $backend,
                "}"
            )
        };
    }
    outer_rules::are_obeyed_as_documented(&[
        ("`vxlan`", ipv6!(r#"{"Type":"vxlan"}"#)),
        ("`udp`, `userspace`", ipv6!(r#"{"Type":"udp","Engine":"userspace"}"#)),
        ("`udp`, `ebpf`", ipv6!(r#"{"Type":"udp","Engine":"ebpf"}"#)),
        (
            "`wireguard`, `userspace`",
            ipv6!(r#"{"Type":"wireguard","Engine":"userspace","ListenPortV6":51820}"#),
        ),
    ])
    .await;
}

async fn shown(network: &'static str, engine: &str) {
    let cluster = Cluster::new(2, network).await;
    let (_nodes, pods) = cluster.start_all().await;
    let (node, stranger) = (cluster.host(0), cluster.host(1));
    for _ in 0..5 {
        pods[0].ping(pods[1].ip()).await.unwrap();
    }
    // From a peer's address, in the name of nobody whom it has.
    let socket = stranger.namespace().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let forged = forged(pods[0].ipv4().unwrap().octets());
    socket.send_to(&forged, (node.ip(), 8285)).unwrap();

    eventually(async || {
        let status = cluster.status(0).await;
        status["backend_report"]["counters"]["dropped_spoofed_source"] == 1
    })
    .await;
    let status = cluster.status(0).await;
    let udp = &status["backend_report"];
    let (properties, counters) = (&udp["properties"], &udp["counters"]);
    let refused = &properties["ebpf_refused"];
    assert_eq!((properties["engine"].as_str(), refused), (Some(engine), &Value::Null));
    for direction in ["sent", "received"] {
        let counter = |what: &str| counters[format!("{what}_{direction}")].as_u64();
        assert!(counter("packets") >= Some(5), "{udp:#}");
        assert!(counter("bytes") >= Some(5 * 28), "{udp:#}");
    }
    assert_eq!(counters["packets_by_ebpf"].as_u64() >= Some(10), engine == "ebpf", "{udp:#}");
    // It keeps the kernel from joining what its programs look at.
    assert_eq!(properties["udp_gro"] == "used", engine == "userspace", "{udp:#}");
    let transport = &status["peers"][0]["transport"];
    assert_eq!(
        (&transport["ipv4"], &transport["carrier"]),
        (&"encapsulated".into(), &engine.into())
    );

    let metrics = metrics(&cluster.subnet_file(0).with_extension("sock"));
    for line in [
        format!("flannel_backend_info{{property=\"engine\",value=\"{engine}\"}} 1"),
        "flannel_backend_events_total{event=\"dropped_spoofed_source\"} 1".into(),
        "flannel_backend_events_total{event=\"dropped_unknown_peer\"} 0".into(),
    ] {
        assert!(metrics.lines().any(|it| it == line), "no line {line:?} in:\n{metrics}");
    }
    let page = status_page(&cluster);
    for words in [
        &format!("\nengine       {engine}\n"),
        "dropped_spoofed_source 1",
        &format!("encapsulated by {engine}\n"),
    ] {
        assert!(page.contains(words), "no {words:?} in:\n{page}");
    }
}

/// A UDP packet of four bytes from a subnet that no peer has.
fn forged(to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 244, 0, 9];
    packet.extend(to);
    packet.extend([0, 9, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4]);
    packet
}

/// What the first host's node says of itself to people.
fn status_page(cluster: &Cluster) -> String {
    let mut command = Command::new(program());
    command.args(["status", "--subnet-file"]).arg(cluster.subnet_file(0));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn metrics(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn where_encryption_is_required_nothing_is_in_the_clear_in_any_phase() {
    required_encryption::holds_in_every_phase(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"wireguard","Engine":"userspace"}}"#,
    )
    .await;
}
