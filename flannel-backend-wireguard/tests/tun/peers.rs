//! Peers that change, start anew, move, and have another key.
#![expect(
    clippy::disallowed_methods,
    reason = "ip sets up a pod that lies, nft a host that translates"
)]

use std::{net::UdpSocket, process::Command, time::Duration};

use flannel_core::{Backend, BackendError, PeerFault};
use flannel_testbed::{probe, soon};
use ipnetwork::IpNetwork;
use tokio::time::{Instant, sleep, timeout};

use crate::lab::{IPV4, Lab};

const SECOND: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard-2","Engine":"userspace"}}"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_restart_costs_a_round_trip() {
    let mut lab = Lab::new(&[IPV4; 2]).await;
    assert!(lab.reaches(0, 1).await);
    let to = lab.pods[1].ip();
    // Both ways: a request of one and an answer of the other, often enough that some come while two engines have the device.
    for n in [0, 1, 0, 1, 0, 1] {
        let stream = probe::stream(&lab.pods[0], to, 1000).unwrap();
        stream.flowing().await;
        sleep(Duration::from_millis(300)).await;
        lab.restart(n).await;
        sleep(Duration::from_secs(1)).await;
        let report = stream.stop().await;
        println!("restart of {n}: {report:?}");
        // 100 ms, on a busy machine. A handshake that has to be repeated is after 5 s.
        assert!(report.lost < 100, "{report:?}");
        assert!(lab.count(n, "packets_received") > 0, "the new engine carries packets");
    }
}

/// Nothing goes the other way, so that the node that started anew has nothing to send: it answers messages of the old session with a
/// handshake.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn packets_of_one_way_go_on_after_a_restart_of_the_receiver() {
    let mut lab = Lab::new(&[IPV4; 2]).await;
    assert!(lab.reaches(0, 1).await);
    let socket = |n: usize| {
        let bind = || UdpSocket::bind((lab.pods[n].ip(), 0)).unwrap();
        lab.pods[n].namespace().run(bind).unwrap()
    };
    let (from, to) = (socket(0), socket(1));
    from.connect(to.local_addr().unwrap()).unwrap();
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        for _ in 0..200 {
            sent += u64::from(from.send(b"hello").is_ok());
            sleep(Duration::from_millis(10)).await;
        }
        sent
    });
    sleep(Duration::from_millis(300)).await;
    lab.restart(1).await;
    let sent = sender.await.unwrap();
    to.set_nonblocking(true).unwrap();
    let received = std::iter::from_fn(|| to.recv(&mut [0; 9]).ok()).count() as u64;
    assert!(sent > 100 && received + LOST >= sent, "{received} of {sent}");
    assert!(lab.count(1, "dropped_no_session") > 0, "there were no messages of the old session");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_change_of_one_peer_leaves_the_sessions_of_others() {
    let mut lab = Lab::new(&[IPV4; 3]).await;
    assert!(lab.reaches(0, 1).await && lab.reaches(0, 2).await);
    let handshakes = lab.count(1, "handshakes_received");
    let leases = lab.leases.clone();
    let peers = lab.peers_of(0, leases[..2].to_vec());
    let report = lab.nodes[0].network.sync(&peers).await.unwrap();
    assert_eq!((report.removed, report.writes()), (1, 1));
    assert!(!lab.reaches(0, 2).await);
    assert_eq!(lab.sync(0).await.writes(), 1);
    assert!(lab.reaches(0, 1).await && lab.reaches(0, 2).await);
    assert_eq!(lab.sync(0).await.writes(), 0);
    assert_eq!(lab.count(1, "handshakes_received"), handshakes);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_peer_is_followed_to_where_its_packets_come_from() {
    let mut lab = Lab::new(&[IPV4; 2]).await;
    assert!(lab.reaches(0, 1).await);
    let moved = "192.0.2.77/24".parse().unwrap();
    lab.testbed.host(1).set_addresses([moved]).await.unwrap();
    assert!(!lab.reaches(0, 1).await, "nobody has said where it is");
    assert!(lab.reaches(1, 0).await, "its packets say where it is");
    assert!(lab.reaches(0, 1).await);
    assert_eq!(lab.sync(0).await.writes(), 0, "it stays so");
    assert!(lab.reaches(0, 1).await);
    // The lease counts again when it changes.
    lab.leases[1].attrs.public_ip = Some([192, 0, 2, 78].into());
    assert_eq!(lab.sync(0).await.writes(), 1);
    assert!(!lab.reaches(0, 1).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_peer_with_another_psk_is_named_after_30_seconds() {
    let psk = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let other = IPV4.replace("}}", &format!(r#","PSK":"{psk}"}}}}"#));
    let mut lab = Lab::new(&[IPV4, &other, IPV4]).await;
    assert!(!lab.reaches(0, 1).await);
    assert!(lab.reaches(0, 2).await);
    let mut problems = lab.sync(0).await.problems;
    assert_eq!(problems, [], "it may still answer");
    let started = Instant::now();
    while problems.is_empty() {
        soon(lab.nodes[0].network.drifted()).await.unwrap();
        problems = lab.sync(0).await.problems;
    }
    assert!(started.elapsed() > Duration::from_secs(25), "{:?}", started.elapsed());
    let [problem] = &*problems else { panic!("{problems:?}") };
    assert_eq!(problem.peer, lab.leases[1].subnet);
    assert_eq!(problem.fault, PeerFault::NoHandshake { seconds: 30, port: 51820 });
    lab.nodes.swap_remove(0).network.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_peer_sends_from_its_own_addresses() {
    let lab = Lab::new(&[IPV4; 3]).await;
    assert!(lab.reaches(1, 0).await && lab.reaches(2, 0).await);
    // The pod behind host 1 says that it is the one behind host 2.
    let other = IpNetwork::from(lab.pods[2].ip());
    let pod = lab.pods[1].namespace();
    let bind = || {
        let mut ip = Command::new("ip");
        let status = ip.args(["addr", "add", &other.to_string(), "dev", "lo"]).status();
        assert!(status.unwrap().success());
        UdpSocket::bind((lab.pods[2].ip(), 0)).unwrap()
    };
    let socket = pod.run(bind).unwrap();
    for _ in 0..10 {
        socket.send_to(b"hello", (lab.pods[0].ip(), 7)).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while lab.count(0, "dropped_spoofed_source") < 10 {
        assert!(Instant::now() < deadline, "{:?}", lab.nodes[0].backend.report());
        sleep(Duration::from_millis(20)).await;
    }
}

/// Translates what host 1 sends to its peers, as a router does that others reach nothing behind: from this port, and to nothing else.
async fn translate(lab: &Lab, port: u16) {
    let rules = format!(
        "add table ip router; delete table ip router; table ip router {{
            chain out {{ type filter hook postrouting priority 300; udp sport 51820 udp sport set {port}; }}
            chain in {{ type filter hook prerouting priority -300; udp dport 51820 drop; udp dport {port} udp dport set 51820; }}
        }}"
    );
    let mut nft = Command::new("nft");
    nft.arg(rules);
    lab.testbed.host(1).run(nft).await.unwrap();
}

/// Its pods are silent: keepalives alone tell where it is, and keep telling.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_peer_behind_a_router_is_reached_as_long_as_it_sends_keepalives() {
    let with_keepalives = IPV4.replace("}}", r#","PersistentKeepaliveInterval":1}}"#);
    for (config, is_reached) in [(&*with_keepalives, true), (IPV4, false)] {
        let lab = Lab::new(&[IPV4, config]).await;
        assert!(lab.reaches(1, 0).await);
        for port in [40_000, 40_001] {
            translate(&lab, port).await;
            let found = async { while !lab.reaches(0, 1).await {} };
            let found = timeout(Duration::from_secs(5), found).await.is_ok();
            assert_eq!(found, is_reached, "{config}, port {port}");
        }
    }
}

/// What a handshake may take on a busy machine, in packets of 10 ms.
const LOST: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn flannel_is_given_what_has_its_name() {
    for (config, device, is_flannels) in
        [(IPV4, "flannel-wg", true), (SECOND, "flannel-wg2", false)]
    {
        let mut lab = Lab::new(&[config; 2]).await;
        assert!(lab.reaches(0, 1).await, "{device}");
        let handed_over = lab.nodes.remove(0).network.hand_over().await;
        let is_refused = matches!(handed_over, Err(BackendError::Unsupported { .. }));
        assert_eq!((handed_over.is_ok(), is_refused), (is_flannels, !is_flannels), "{device}");
        let mut show = Command::new("ip");
        show.args(["link", "show", device]);
        lab.testbed.host(0).run(show).await.expect("the device stays");
    }
}
