//! What has to hold for every message from the network.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use flannel_netlink::wireguard::{PeerConfig, SecretKey};
use tokio::time::Instant;

use super::{
    Identity, Shared,
    counters::Count,
    inbound::Opener,
    outbound::Context,
    routing::Routing,
    session::{MAX_HANDSHAKE, OVERHEAD, Session},
};

/// Messages to a peer that has a session: each is a byte that says what it is, two bytes of length, and as many bytes.
///
/// A message that the other end sent is opened once and carries what was sent. No other one is opened, none keeps those around it from
/// being opened, and none ends the session.
///
/// # Panics
///
/// If that does not hold.
pub(crate) fn messages(mut bytes: &[u8]) {
    let (mut here, there) = connected();
    while let [kind, high, low, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()).min(MAX);
        let (own, rest) = rest.split_at(len);
        bytes = rest;
        let [first, second, third] = [1, 2, 3].map(|number| ip_packet(number, PEER, own));
        let sealed = |packet: &[u8]| seal(&there, packet);
        let part = usize::from(kind >> 2);
        match kind & 3 {
            // Of somebody else, one or several that came as one.
            0 => {
                let stride = if part == 0 { MAX } else { 4 * part };
                assert!(here.open(own, stride).is_empty(), "{own:x?} was opened");
                assert_eq!(here.count(Count::Handshakes), 0, "{own:x?} was a handshake");
            }
            // As it was sent, twice; and with a source that is not the peer's.
            1 => {
                let message = sealed(&first);
                let twice = [&message[..], &message].concat();
                assert_eq!(here.open(&twice, message.len()), [first], "once");
                let spoofed = sealed(&ip_packet(4, STRANGER, own));
                assert!(
                    here.open(&spoofed, spoofed.len()).is_empty(),
                    "it was no packet of the peer's"
                );
            }
            // Altered.
            2 => {
                let [before, mut altered, behind] =
                    [&first, &second, &third].map(|one| sealed(one));
                let at = part * 7 % altered.len();
                altered[at] ^= kind >> 2 | 1;
                let stride = altered.len();
                let opened = here.open(&[before, altered, behind].concat(), stride);
                assert_eq!(opened, [first, third], "byte {at} altered");
            }
            // Cut short, which only the last of several can be.
            _ => {
                let [before, cut] = [sealed(&first), sealed(&second)];
                let len = part % cut.len();
                let opened = here.open(&[&before, &cut[..len]].concat(), before.len());
                assert_eq!(opened, [first], "{len} bytes");
            }
        }
        assert!(here.session.lock().has_session());
    }
}

/// An end of a session with all that a thread has who receives, but sockets and a device.
struct Receiver {
    shared: Shared,
    session: Arc<Session>,
    opener: Opener,
}

impl Receiver {
    /// The packets in messages of `stride` bytes each.
    fn open(&mut self, messages: &[u8], stride: usize) -> Vec<Vec<u8>> {
        let routing = Routing::new([(INDEX, &self.session)]);
        let (shared, counters) = (&self.shared, &self.shared.counters[0]);
        let now = Instant::now();
        let context = Context { shared, routing: &routing, sockets: &[], counters, now };
        let (mut plain, mut opened) = (vec![0; messages.len()], Vec::new());
        self.opener.open((messages, stride), FROM, (0, &mut plain), &mut opened, &context);
        opened.iter().map(|piece| plain[piece.at..piece.at + piece.len].to_vec()).collect()
    }

    fn count(&self, count: Count) -> u64 {
        self.shared.counters[0].values()[count as usize]
    }
}

/// Both ends of a session.
fn connected() -> (Receiver, Session) {
    let keys = [SecretKey::new([1; 32]), SecretKey::new([2; 32])];
    let shared = Shared::new(&keys[0], 1, 1420).expect("descriptors");
    let session = |identity: &Identity, other: &SecretKey| {
        let config = PeerConfig {
            key: super::public_key(other),
            preshared_key: None,
            endpoint: Some(FROM),
            keepalive: 0,
            allowed_ips: BTreeSet::from(["10.244.1.0/24".parse().expect("a block")]),
        };
        Session::new(identity, config, INDEX)
    };
    let here = session(&shared.identity, &keys[1]);
    let there = session(&Identity::new(&keys[1]), &keys[0]);
    let mut scratch = [0; 4 * MAX_HANDSHAKE];
    let (now, mut message) = (Instant::now(), Vec::new());
    // The initiation, the response, and the keepalive that confirms it.
    there.lock().begin(&mut scratch, now, &mut |_, sent| message = sent.to_vec());
    let initiation = std::mem::take(&mut message);
    let mut keep = |_: SocketAddr, sent: &[u8]| message = sent.to_vec();
    here.lock().handshake(&initiation, FROM, &mut scratch, now, &mut keep).expect("an initiation");
    let response = std::mem::take(&mut message);
    let mut keep = |_: SocketAddr, sent: &[u8]| message = sent.to_vec();
    there.lock().handshake(&response, FROM, &mut scratch, now, &mut keep).expect("a response");
    let mut here = Receiver { shared, session: Arc::new(here), opener: Opener::new() };
    assert!(here.open(&message, message.len()).is_empty(), "a keepalive carries no packet");
    assert!(here.session.lock().has_session());
    (here, there)
}

/// An IPv4 packet of this identification from `source` that carries `data`.
fn ip_packet(number: u8, source: [u8; 4], data: &[u8]) -> Vec<u8> {
    let len = (20 + data.len() as u16).to_be_bytes();
    let header = [0x45, 0, len[0], len[1], 0, number, 0, 0, 64, 17, 0, 0];
    [&header, &source[..], &[10, 244, 2, 3], data].concat()
}

fn seal(session: &Session, packet: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; packet.len() + OVERHEAD];
    session.lock().seal(packet, &mut sealed, Instant::now());
    sealed
}

const PEER: [u8; 4] = [10, 244, 1, 2];
const STRANGER: [u8; 4] = [10, 244, 3, 2];
const INDEX: u32 = 7;
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
