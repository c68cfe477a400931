//! Which peers do not answer, as opposed to those that nobody sends anything to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flannel_netlink::wireguard::{Peer, PublicKey};
use tokio::time::Instant;

/// What was seen of the peers of one device.
#[derive(Debug, Default)]
pub(crate) struct Handshakes(BTreeMap<PublicKey, Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Bytes sent to it until then.
    sent: u64,
    /// Since when packets have been sent to it without a handshake.
    waiting: Option<Instant>,
}

impl Handshakes {
    /// Takes in what the kernel shows at `now`, which is `wall_clock` since 1970, and returns the peers that packets have been sent
    /// to for [`TIMEOUT`] without a handshake.
    pub(crate) fn observe(
        &mut self,
        peers: &[Peer],
        now: Instant,
        wall_clock: Duration,
    ) -> BTreeSet<PublicKey> {
        let observe = |peer: &Peer| {
            // What an earlier process sent to a peer that has answered since tells nothing.
            let sent = if peer.last_handshake.is_some() { peer.sent } else { 0 };
            let before = self.0.get(&peer.config.key).copied();
            let Seen { sent, waiting } = before.unwrap_or(Seen { sent, waiting: None });
            let waiting = match waiting {
                _ if has_session(peer, wall_clock) => None,
                None if peer.sent > sent => Some(now),
                waiting => waiting,
            };
            (peer.config.key, Seen { sent: peer.sent, waiting })
        };
        self.0 = peers.iter().map(observe).collect();
        let is_late =
            |seen: &Seen| seen.waiting.is_some_and(|since| now.duration_since(since) >= TIMEOUT);
        self.0.iter().filter(|(_, seen)| is_late(seen)).map(|(key, _)| *key).collect()
    }
}

/// Whether the keys of the peer's last handshake are still in use.
pub(crate) fn has_session(peer: &Peer, wall_clock: Duration) -> bool {
    // One in the future was before the clock was set back: nobody knows how long ago.
    let is_recent = |at: Duration| {
        wall_clock.saturating_sub(at) < REJECT_AFTER_TIME
            && at.saturating_sub(wall_clock) < CLOCK_STEP
    };
    peer.last_handshake.is_some_and(is_recent)
}

/// The time since 1970, by which the kernel says when handshakes were.
pub(crate) fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Six attempts of WireGuard, which makes one every 5 s.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// More than passes between reading the clock and the kernel's answer.
const CLOCK_STEP: Duration = Duration::from_secs(5);

/// How long the keys of a handshake are used: WireGuard's paper, section 6.1.
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::difference::difference_tests::peer;

    #[test]
    fn a_handshake_before_the_clock_was_set_back_is_none() {
        let now = Duration::from_secs(10_000);
        for (seconds, is_recent) in [(9_821, true), (9_820, false), (10_001, true), (13_600, false)]
        {
            let peer = peer(1, 0, Some(Duration::from_secs(seconds)));
            assert_eq!(has_session(&peer, now), is_recent, "{seconds}");
        }
    }

    #[test]
    fn only_a_peer_that_packets_were_sent_to_for_30_seconds_does_not_answer() {
        let mut handshakes = Handshakes::default();
        let start = Instant::now();
        let mut observe = |second: u64, sent: u64, last_handshake: Option<u64>| {
            let idle = peer(1, 0, None);
            let tried = peer(2, sent, last_handshake.map(Duration::from_secs));
            let now = start + Duration::from_secs(second);
            let late =
                handshakes.observe(&[idle, tried], now, Duration::from_secs(10_000 + second));
            assert!(!late.contains(&PublicKey::new([1; 32])), "nothing was sent to it");
            late.len()
        };
        assert_eq!(observe(0, 148, None), 0);
        assert_eq!(observe(29, 900, None), 0);
        assert_eq!(observe(30, 900, None), 1);
        assert_eq!(observe(31, 999, Some(10_031)), 0, "it answers");
        assert_eq!(observe(900, 999, Some(10_031)), 0, "nothing was sent since");
        assert_eq!(observe(901, 1999, Some(10_031)), 0, "it may still answer");
        assert_eq!(observe(931, 2999, Some(10_031)), 1);
        assert_eq!(handshakes.observe(&[], start, Duration::ZERO), BTreeSet::new(), "it is gone");
    }

    #[test]
    fn a_peer_that_was_idle_before_a_restart_answers() {
        let mut handshakes = Handshakes::default();
        let start = Instant::now();
        let idle = [peer(2, 900, Some(Duration::from_secs(1000)))];
        for second in [0, 31, 62] {
            let now = start + Duration::from_secs(second);
            let late = handshakes.observe(&idle, now, Duration::from_secs(10_000 + second));
            assert_eq!(late, BTreeSet::new(), "after {second} s");
        }
    }
}
