//! Messages that nobody should send.

use std::{
    io::Read,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn floods_are_counted_and_disturb_nobody() {
    let lab = Lab::new(&[IPV4; 3]).await;
    assert!(lab.reaches(0, 1).await);
    let to = SocketAddr::new(lab.testbed.host(0).ip(), 51820);
    let from = SocketAddr::new(lab.testbed.host(2).ip(), 0);
    let bind = || UdpSocket::bind(from).unwrap();
    let attacker = lab.testbed.host(2).namespace().run(bind).unwrap();
    let mut initiation = [0x5a; 148];
    initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
    let flood = std::thread::spawn(move || {
        for n in 0_u32..100_000 {
            initiation[4..8].copy_from_slice(&n.to_le_bytes());
            attacker.send_to(&initiation, to).unwrap();
        }
        // Of each kind and length, whole and not.
        for kind in 0..8 {
            for len in 0..200_usize {
                let mut message = vec![kind; len];
                message.iter_mut().skip(1).take(3).for_each(|byte| *byte = 0);
                attacker.send_to(&message, to).unwrap();
            }
        }
    });
    while !flood.is_finished() {
        assert!(lab.reaches(1, 0).await || lab.reaches(1, 0).await);
    }
    flood.join().unwrap();
    let forged = settles(&lab, "dropped_forged", 10_000).await;
    let malformed = settles(&lab, "dropped_malformed", 100).await;
    // The queue of a socket may be full.
    assert!(forged >= 10_000 && malformed >= 100, "{forged} forged, {malformed} malformed");
    assert!(lab.reaches(1, 0).await);
    assert_eq!(lab.count(0, "dropped_replayed"), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn what_was_sent_before_is_not_taken_again() {
    let lab = Lab::new(&[IPV4; 2]).await;
    // All that enters and leaves the host.
    let all = Some(Protocol::from(i32::from(0x0003_u16.to_be())));
    let open = || Socket::new(Domain::PACKET, Type::RAW, all);
    let mut capture = lab.testbed.host(1).namespace().run(open).unwrap().unwrap();
    capture.set_nonblocking(true).unwrap();
    for _ in 0..5 {
        assert!(lab.reaches(1, 0).await);
    }
    let (mut messages, mut frame) = (Vec::new(), [0; 2048]);
    let own = lab.testbed.host(1).ipv4().unwrap().octets();
    while let Ok(len) = capture.read(&mut frame) {
        let is_ours = len > 42 && frame[12..14] == [8, 0] && frame[26..30] == own;
        if is_ours && frame[36..38] == 51820_u16.to_be_bytes() {
            messages.push(frame[42..len].to_vec());
        }
    }
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
