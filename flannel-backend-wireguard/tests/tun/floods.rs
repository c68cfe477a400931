//! Messages that nobody should send.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519,
};
use flannel_backend_wireguard::Wireguard;
use flannel_core::{Backend, Lease};
use flannel_netlink::wireguard::PublicKey;
use flannel_testbed::{Host, probe};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, sleep};

use crate::lab::{IPV4, Lab};

async fn settles(lab: &Lab, name: &str, least: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let count = lab.count(0, name);
        if count >= least || Instant::now() > deadline {
            return count;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// What became of messages of handshakes that were not taken.
const REFUSED: [&str; 5] = [
    "cookies_sent",
    "dropped_forged",
    "dropped_malformed",
    "dropped_no_session",
    "dropped_unknown_peer",
];

fn refused(backend: &Wireguard) -> u64 {
    let counters = backend.report().counters;
    REFUSED.iter().map(|name| counters[*name]).sum()
}

/// Who sends to a host from another one, no faster than the engine there counts.
struct Attacker {
    socket: UdpSocket,
    to: SocketAddr,
    victim: Arc<Wireguard>,
    sent: u64,
    /// Those that the queue of the socket had no room for, as far as is known.
    lost: u64,
}

impl Attacker {
    fn new(lab: &Lab, host: usize) -> Self {
        let from = SocketAddr::new(lab.testbed.host(host).ip(), 0);
        let bind = || UdpSocket::bind(from).unwrap();
        Self {
            socket: lab.testbed.host(host).namespace().run(bind).unwrap(),
            to: SocketAddr::new(lab.testbed.host(0).ip(), 51820),
            victim: Arc::clone(&lab.nodes[0].backend),
            sent: 0,
            lost: 0,
        }
    }

    async fn send(&mut self, message: &[u8]) {
        self.socket.send_to(message, self.to).unwrap();
        self.sent += 1;
        if !self.sent.is_multiple_of(UNDER_WAY) {
            return;
        }
        let deadline = Instant::now() + Duration::from_millis(200);
        while refused(&self.victim) + self.lost + UNDER_WAY < self.sent {
            if Instant::now() > deadline {
                self.lost = self.sent - refused(&self.victim);
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// How many messages the queue of a socket has room for.
const UNDER_WAY: u64 = 128;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn floods_are_counted_and_disturb_nobody() {
    let lab = Lab::new(&[IPV4; 3]).await;
    assert!(lab.reaches(0, 1).await);
    let stream = probe::stream(&lab.pods[1], lab.pods[0].ip(), 100).unwrap();
    let mut attacker = Attacker::new(&lab, 2);
    let mut initiation = [0x5a; INITIATION];
    initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
    for n in 0_u32..100_000 {
        initiation[4..8].copy_from_slice(&n.to_le_bytes());
        attacker.send(&initiation).await;
    }
    // Of each kind and length, whole and not. Those without a byte are none.
    let mut malformed = 0;
    for kind in 0..8 {
        for len in 1..200_usize {
            let mut message = vec![kind; len];
            message.iter_mut().skip(1).take(3).for_each(|byte| *byte = 0);
            attacker.send(&message).await;
            let is_whole = matches!((kind, len), (1, INITIATION) | (2, 92) | (3, 64) | (4, 32..));
            malformed += u64::from(!is_whole);
        }
    }
    // The queue of a socket may be full.
    for (name, sent) in [("dropped_forged", 100_002), ("dropped_malformed", malformed)] {
        let counted = settles(&lab, name, sent * 9 / 10).await;
        assert!(counted >= sent * 9 / 10 && counted <= sent, "{name}: {counted} of {sent}");
    }
    let report = stream.stop().await;
    assert!(report.sent > 100 && report.lost * 100 <= report.sent, "{report}");
    assert!(lab.reaches(1, 0).await);
    assert_eq!(lab.count(0, "dropped_replayed"), 0);
}

/// Initiations by keys that are no peer's, for who has this lease: all is right with them, as anybody can make them who knows the
/// public key.
fn foreign_initiations(lease: &Lease) -> Vec<Vec<u8>> {
    let data = lease.attrs.backend_data.as_ref().unwrap();
    let key = data.as_str().split('"').find_map(|word| word.parse::<PublicKey>().ok()).unwrap();
    let initiation = |n: u8| {
        let private = x25519::StaticSecret::from([n; 32]);
        let public = x25519::PublicKey::from(*key.bytes());
        let mut tunn = Tunn::new(private, public, None, None, n.into(), None);
        let mut message = [0; INITIATION];
        match tunn.format_handshake_initiation(&mut message, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            _ => panic!("no initiation"),
        }
    };
    (1..=200).map(initiation).collect()
}

/// A peer that starts in the flood has to return the cookie: without, a handshake is looked at only if it is among the first of a second.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_flood_of_handshakes_costs_little_and_keeps_no_peer_out() {
    let mut lab = Lab::new(&[IPV4; 4]).await;
    assert!(lab.reaches(1, 0).await && lab.reaches(2, 0).await);
    let stream = probe::stream(&lab.pods[1], lab.pods[0].ip(), 100).unwrap();
    let initiations = foreign_initiations(&lab.leases[0]);
    let mut attacker = Attacker::new(&lab, 3);
    let is_over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let flood = tokio::spawn({
        let is_over = Arc::clone(&is_over);
        async move {
            for message in initiations.iter().cycle() {
                attacker.send(message).await;
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
            attacker
        }
    });
    assert!(settles(&lab, "cookies_sent", 1000).await >= 1000);

    let mut capture = Sent::by(lab.testbed.host(2));
    let mut has_returned_cookie = false;
    for _ in 0..5 {
        lab.restart(2).await;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !lab.reaches(2, 0).await {
            assert!(Instant::now() < deadline, "{:?}", lab.nodes[2].backend.report());
        }
        let initiations: Vec<_> =
            capture.messages().into_iter().filter(|it| it.len() == INITIATION).collect();
        assert!(!initiations.is_empty(), "the new session is by its own handshake");
        // The last 16 bytes are what is made with a cookie.
        has_returned_cookie |= initiations.iter().any(|it| it[INITIATION - 16..] != [0; 16]);
        if has_returned_cookie {
            break;
        }
    }
    assert!(has_returned_cookie, "all of its handshakes were taken without");
    assert!(lab.count(2, "packets_received") > 0);
    is_over.store(true, Ordering::Relaxed);
    let attacker = flood.await.unwrap();

    let seconds = began.elapsed().as_secs();
    let [cookies, unknown] =
        ["cookies_sent", "dropped_unknown_peer"].map(|name| lab.count(0, name));
    let Attacker { sent, lost, .. } = attacker;
    println!("{sent} in {seconds} s, {lost} lost: {cookies} cookies, {unknown} looked at");
    assert!(unknown > 0 && unknown <= (seconds + 2) * HANDSHAKES_PER_SECOND, "{unknown}");
    assert!((cookies + unknown) * 10 >= sent * 9, "{cookies} and {unknown} of {sent}");
    let report = stream.stop().await;
    assert!(report.sent > 100 && report.lost * 100 <= report.sent, "{report}");
}

/// The engine's: above it, handshakes are answered with cookies.
const HANDSHAKES_PER_SECOND: u64 = 1000;
/// The length of the message that begins a handshake, bytes.
const INITIATION: usize = 148;

/// The messages of WireGuard that a host sends.
struct Sent {
    capture: Socket,
    own: Ipv4Addr,
}

impl Sent {
    fn by(host: &Host) -> Self {
        // All that enters and leaves the host.
        let all = Some(Protocol::from(i32::from(0x0003_u16.to_be())));
        let open = || {
            let socket = Socket::new(Domain::PACKET, Type::RAW, all)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        Self { capture: host.namespace().run(open).unwrap().unwrap(), own: host.ipv4().unwrap() }
    }

    /// Those since the last time.
    fn messages(&mut self) -> Vec<Vec<u8>> {
        let (mut messages, mut frame) = (Vec::new(), [0; 2048]);
        while let Ok(len) = self.capture.read(&mut frame) {
            let is_ours = len > 42 && frame[12..14] == [8, 0] && frame[26..30] == self.own.octets();
            if is_ours && frame[36..38] == 51820_u16.to_be_bytes() {
                messages.push(frame[42..len].to_vec());
            }
        }
        messages
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn what_was_sent_before_is_not_taken_again() {
    let lab = Lab::new(&[IPV4; 2]).await;
    let mut sent = Sent::by(lab.testbed.host(1));
    for _ in 0..5 {
        assert!(lab.reaches(1, 0).await);
    }
    let messages = sent.messages();
    assert!(messages.len() >= 7, "{} messages", messages.len());
    let received = settles(&lab, "packets_received", 5).await;
    let to = SocketAddr::new(lab.testbed.host(0).ip(), 51820);
    let bind = || UdpSocket::bind("0.0.0.0:0").unwrap();
    let other = lab.testbed.host(1).namespace().run(bind).unwrap();
    for message in &messages {
        other.send_to(message, to).unwrap();
    }
    let replayed = settles(&lab, "dropped_replayed", 6).await;
    assert!(replayed >= 6, "{replayed} of {}", messages.len());
    assert_eq!(lab.count(0, "packets_received"), received);
    // Nor is the peer where they came from.
    assert!(lab.reaches(0, 1).await);
}
