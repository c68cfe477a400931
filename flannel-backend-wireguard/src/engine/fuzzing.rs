//! What has to hold for every message from the network.

use std::{collections::BTreeSet, net::SocketAddr};

use flannel_netlink::wireguard::{PeerConfig, PublicKey, SecretKey};
use tokio::time::Instant;

use super::{
    Identity,
    session::{MAX_HANDSHAKE, OVERHEAD, Received, Session, State},
};

/// Messages to a peer that has a session: each is a byte that says what it is, two bytes of length, and as many bytes.
///
/// A message that the other end sent is opened once and carries what was sent. No other one is opened, and none ends the session.
///
/// # Panics
///
/// If that does not hold.
pub(crate) fn messages(mut bytes: &[u8]) {
    let (here, there) = connected();
    let mut send = |_: SocketAddr, _: &[u8]| {};
    while let [kind, high, low, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()).min(MAX);
        let (own, rest) = rest.split_at(len);
        bytes = rest;
        match kind & 3 {
            // An empty one asks for what has waited.
            0 if own.is_empty() => {}
            // Of somebody else.
            0 => {
                let is_taken = open(&mut here.lock(), own).is_some();
                assert!(!is_taken, "{own:x?} was opened");
                let mut scratch = vec![0; own.len() + MAX_HANDSHAKE];
                let answered =
                    here.lock().handshake(own, FROM, &mut scratch, Instant::now(), &mut send);
                // A cookie reply has a message authentication code as well.
                assert!(answered.is_err(), "{own:x?} was a handshake");
            }
            // As it was sent, twice.
            1 => {
                let packet = ip_packet(own);
                let sealed = seal(&mut there.lock(), &packet);
                assert_eq!(open(&mut here.lock(), &sealed), Some(packet));
                assert_eq!(open(&mut here.lock(), &sealed), None, "twice");
            }
            // Altered, or cut short.
            2 => {
                let mut sealed = seal(&mut there.lock(), &ip_packet(own));
                let at = usize::from(kind >> 2) * 7 % sealed.len();
                sealed[at] ^= kind >> 2 | 1;
                assert_eq!(open(&mut here.lock(), &sealed), None, "byte {at} altered");
            }
            _ => {
                let sealed = seal(&mut there.lock(), &ip_packet(own));
                let len = usize::from(kind >> 2) % sealed.len();
                assert_eq!(open(&mut here.lock(), &sealed[..len]), None, "{len} bytes");
            }
        }
        assert!(here.lock().has_session());
    }
}

/// Both ends of a session.
fn connected() -> (Session, Session) {
    let keys = [SecretKey::new([1; 32]), SecretKey::new([2; 32])];
    let [here, there] = [&keys[0], &keys[1]].map(Identity::new);
    let session = |identity, other: &SecretKey| {
        let config = PeerConfig {
            key: super::public_key(other),
            preshared_key: None,
            endpoint: Some(FROM),
            keepalive: 0,
            allowed_ips: BTreeSet::new(),
        };
        Session::new(identity, config, 7)
    };
    let (a, b) = (session(&here, &keys[1]), session(&there, &keys[0]));
    let _: PublicKey = a.key;
    let mut scratch = [0; 4 * MAX_HANDSHAKE];
    let (now, mut message) = (Instant::now(), Vec::new());
    // The initiation, the response, and the keepalive that confirms it.
    b.lock().begin(&mut scratch, now, &mut |_, sent| message = sent.to_vec());
    let initiation = std::mem::take(&mut message);
    let mut keep = |_: SocketAddr, sent: &[u8]| message = sent.to_vec();
    a.lock().handshake(&initiation, FROM, &mut scratch, now, &mut keep).expect("an initiation");
    let response = std::mem::take(&mut message);
    let mut keep = |_: SocketAddr, sent: &[u8]| message = sent.to_vec();
    b.lock().handshake(&response, FROM, &mut scratch, now, &mut keep).expect("a response");
    assert_eq!(open(&mut a.lock(), &message), Some(Vec::new()));
    (a, b)
}

/// An IPv4 packet that carries `data`.
fn ip_packet(data: &[u8]) -> Vec<u8> {
    let len = (20 + data.len() as u16).to_be_bytes();
    let header = [0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, 17, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3];
    [&header, data].concat()
}

fn seal(state: &mut State, packet: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; packet.len() + OVERHEAD];
    state.seal(packet, &mut sealed, Instant::now());
    sealed
}

/// What the message carries, if it is opened; nothing for a keepalive.
fn open(state: &mut State, message: &[u8]) -> Option<Vec<u8>> {
    let index = message.get(4..8)?.try_into().ok().map(u32::from_le_bytes)?;
    let (mut out, mut scratch) = (vec![0; message.len() + MAX_HANDSHAKE], [0; 2 * MAX_HANDSHAKE]);
    let (now, mut send) = (Instant::now(), |_: SocketAddr, _: &[u8]| {});
    match state.open(message, (index, FROM), &mut out, &mut scratch, now, &mut send) {
        Ok(Received::Packet(len)) => Some(out[..len].to_vec()),
        Ok(Received::Keepalive) => Some(Vec::new()),
        Err(_) => None,
    }
}

const FROM: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 51820);
/// Bytes of a packet.
const MAX: usize = 2000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_messages_that_nobody_sent_are_not_opened() {
        for index in 0..=8 {
            let mut message = vec![0, 1000_u16.to_be_bytes()[0], 1000_u16.to_be_bytes()[1]];
            message.extend([4, 0, 0, 0, index, 7, 0, 0]);
            message.resize(3 + 1000, 0);
            messages(&message);
        }
    }

    #[test]
    fn each_kind_of_message_passes() {
        for kind in 0..=255 {
            messages(&[kind, 0, 5, 4, 0, 0, 0, 9, kind, 0, 0]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn no_bytes_are_opened(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            messages(&bytes);
        }
    }
}
