//! One peer of the engine: its keys, its sessions, and where it is.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError},
    x25519,
};
use flannel_netlink::wireguard::{Peer, PeerConfig, PublicKey};
use tokio::time::Instant;

use super::{Identity, counters::Count};
use crate::handshakes::wall_clock;

/// A peer. Threads that carry packets and the ticker share it.
pub(super) struct Session {
    pub(super) key: PublicKey,
    state: Mutex<State>,
}

/// What is known of a peer, for who holds it alone.
pub(super) struct State {
    tunn: Tunn,
    pub(super) config: PeerConfig,
    /// The local index of the newest session that the peer has used.
    confirmed: Option<u32>,
    /// Since 1970.
    last_handshake: Option<Duration>,
    /// Bytes sent to it, those of handshakes as well.
    sent: u64,
    /// When a handshake was begun that has not been completed.
    began: Option<Instant>,
    last_used: Option<Instant>,
    last_sent: Option<Instant>,
    /// Whether the ticker looks at it often.
    is_awake: bool,
}

/// What takes packets to peers.
pub(super) type Send<'a> = &'a mut dyn FnMut(SocketAddr, &[u8]);

/// What came of a datagram with data.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Received {
    /// Nothing to hand on.
    Keepalive,
    /// A packet of so many bytes, which claims to be IP.
    Packet(usize),
}

impl Session {
    /// A peer without a session, whose local indices begin with the 24 bits of `index`.
    pub(super) fn new(identity: &Identity, config: PeerConfig, index: u32) -> Self {
        let state = State {
            tunn: tunn(identity, &config, index),
            config,
            confirmed: None,
            last_handshake: None,
            sent: 0,
            began: None,
            last_used: None,
            last_sent: None,
            is_awake: false,
        };
        Self { key: state.config.key, state: state.into() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with another configuration of the same peer. Sessions go on, unless the preshared key is another.
    pub(super) fn configure(&self, identity: &Identity, config: &PeerConfig, index: u32) {
        let mut state = self.lock();
        if state.config.preshared_key != config.preshared_key {
            state.tunn = tunn(identity, config, index);
            (state.confirmed, state.began) = (None, None);
        }
        let endpoint = config.endpoint.or(state.config.endpoint);
        state.config = PeerConfig { endpoint, ..config.clone() };
    }

    /// As the kernel would show it.
    pub(super) fn show(&self) -> Peer {
        let state = self.lock();
        let State { config, last_handshake, sent, .. } = &*state;
        Peer { config: config.clone(), last_handshake: *last_handshake, sent: *sent }
    }

    pub(super) fn allowed_ips(&self) -> BTreeSet<ipnetwork::IpNetwork> {
        self.lock().config.allowed_ips.clone()
    }
}

impl State {
    pub(super) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Notes at `now` that packets are exchanged with the peer. Returns whether the ticker has to be told.
    pub(super) fn touch(&mut self, now: Instant, scratch: &mut [u8], send: Send<'_>) -> bool {
        self.last_used = Some(now);
        if self.is_awake {
            return false;
        }
        self.is_awake = true;
        // The clock of a peer stands still while the ticker does not look at it.
        self.advance(now, scratch, send);
        true
    }

    /// Encrypts `packet` to `out`, which has room for exactly [`OVERHEAD`] bytes more. Needs a [session](Self::has_session).
    pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) {
        let sealed = self.tunn.encapsulate(packet, out);
        debug_assert!(matches!(sealed, TunnResult::WriteToNetwork(_)));
        self.sent += (packet.len() + OVERHEAD) as u64;
        self.last_sent = Some(now);
    }

    /// Keeps `packet` until there is a session, and begins a handshake.
    pub(super) fn enqueue(
        &mut self,
        packet: &[u8],
        scratch: &mut [u8],
        now: Instant,
        send: Send<'_>,
    ) {
        if let TunnResult::WriteToNetwork(message) = self.tunn.encapsulate(packet, scratch) {
            note(&mut self.began, &mut self.sent, &mut self.last_sent, message, now);
            deliver(self.config.endpoint, message, send);
        }
    }

    /// Begins a handshake if there is neither a session nor another handshake.
    pub(super) fn begin(&mut self, scratch: &mut [u8], now: Instant, send: Send<'_>) {
        if self.has_session() {
            return;
        }
        if let TunnResult::WriteToNetwork(message) =
            self.tunn.format_handshake_initiation(scratch, false)
        {
            note(&mut self.began, &mut self.sent, &mut self.last_sent, message, now);
            deliver(self.config.endpoint, message, send);
        }
    }

    /// Decrypts a datagram of the session with local index `index` from `from` to the start of `out`. The peer is at `from` from now
    /// on if that is right.
    pub(super) fn open(
        &mut self,
        datagram: &[u8],
        (index, from): (u32, SocketAddr),
        out: &mut [u8],
        scratch: &mut [u8],
        now: Instant,
        send: Send<'_>,
    ) -> Result<Received, Count> {
        let received = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::Done => Received::Keepalive,
            TunnResult::WriteToTunnelV4(packet, _) => Received::Packet(packet.len()),
            TunnResult::WriteToTunnelV6(packet, _) => Received::Packet(packet.len()),
            TunnResult::Err(error) => return Err(reason(&error)),
            TunnResult::WriteToNetwork(_) => Received::Keepalive,
        };
        self.config.endpoint = Some(from);
        if self.confirmed != Some(index) && self.is_newer(index) {
            self.completed(index);
            self.flush(scratch, now, send);
        }
        Ok(received)
    }

    /// Takes in a message of a handshake from `from`, which has been looked at, and answers it.
    pub(super) fn handshake(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        scratch: &mut [u8],
        now: Instant,
        send: Send<'_>,
    ) -> Result<(), Count> {
        let kind = message.first().copied();
        match self.tunn.decapsulate(Some(from.ip()), message, scratch) {
            TunnResult::Err(error) => return Err(reason(&error)),
            TunnResult::WriteToNetwork(answer) => {
                self.config.endpoint = Some(from);
                note(&mut self.began, &mut self.sent, &mut self.last_sent, answer, now);
                send(from, answer);
            }
            _ => {}
        }
        if kind == Some(RESPONSE)
            && let Some(index) = receiver(message)
        {
            self.completed(index);
            self.flush(scratch, now, send);
        }
        Ok(())
    }

    /// Does what is due at `now`, and says when to look again; `None` for not before the peer is used.
    pub(super) fn tick(
        &mut self,
        now: Instant,
        scratch: &mut [u8],
        send: Send<'_>,
    ) -> Option<Duration> {
        self.advance(now, scratch, send);
        let keepalive = Duration::from_secs(self.config.keepalive.into());
        let mut next = Duration::MAX;
        if !keepalive.is_zero() && self.config.endpoint.is_some() {
            let since = self.last_sent.map_or(Duration::MAX, |at| now.duration_since(at));
            if since >= keepalive {
                self.enqueue(&[], scratch, now, send);
                self.last_sent = Some(now);
            }
            next = self
                .last_sent
                .map_or(keepalive, |at| keepalive.saturating_sub(now.duration_since(at)));
        }
        let within = |at: Option<Instant>, time| at.is_some_and(|at| now.duration_since(at) < time);
        self.is_awake = within(self.last_used, AWAKE) || within(self.began, ATTEMPTS);
        if self.is_awake {
            next = INTERVAL;
        } else if self.last_used.is_some() && !self.tunn.is_expired() {
            // Keys are to be forgotten.
            next = next.min(REST);
        }
        (next != Duration::MAX).then_some(next.max(INTERVAL))
    }

    /// Lets the state machine see the time: it sends what is due, and forgets what is old.
    fn advance(&mut self, now: Instant, scratch: &mut [u8], send: Send<'_>) {
        if let TunnResult::WriteToNetwork(message) = self.tunn.update_timers(scratch) {
            note(&mut self.began, &mut self.sent, &mut self.last_sent, message, now);
            deliver(self.config.endpoint, message, send);
        }
    }

    /// Sends what has waited for a session.
    fn flush(&mut self, scratch: &mut [u8], now: Instant, send: Send<'_>) {
        while self.has_session()
            && let TunnResult::WriteToNetwork(message) = self.tunn.decapsulate(None, &[], scratch)
        {
            note(&mut self.began, &mut self.sent, &mut self.last_sent, message, now);
            deliver(self.config.endpoint, message, send);
        }
    }

    fn completed(&mut self, index: u32) {
        (self.confirmed, self.last_handshake) = (Some(index), Some(wall_clock()));
        self.began = None;
    }

    /// Whether a session was begun later than the confirmed one: their last eight bits are counted up.
    fn is_newer(&self, index: u32) -> bool {
        self.confirmed.is_none_or(|before| (index as u8).wrapping_sub(before as u8) < 0x80)
    }
}

fn tunn(identity: &Identity, config: &PeerConfig, index: u32) -> Tunn {
    let preshared_key = config.preshared_key.as_ref().map(|key| *key.bytes());
    // Keepalives are the ticker's: they may change while sessions go on.
    Tunn::new(
        identity.private.clone(),
        x25519::PublicKey::from(*config.key.bytes()),
        preshared_key,
        None,
        index,
        Some(identity.verified.clone()),
    )
}

/// Notes at `now` that `message` is sent.
fn note(
    began: &mut Option<Instant>,
    sent: &mut u64,
    last_sent: &mut Option<Instant>,
    message: &[u8],
    now: Instant,
) {
    *sent += message.len() as u64;
    *last_sent = Some(now);
    if message.first() == Some(&INITIATION) {
        began.get_or_insert(now);
    }
}

fn deliver(endpoint: Option<SocketAddr>, message: &[u8], send: Send<'_>) {
    if let Some(endpoint) = endpoint {
        send(endpoint, message);
    }
}

fn reason(error: &WireGuardError) -> Count {
    match error {
        WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => Count::Replayed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Count::NoSession,
        WireGuardError::WrongTai64nTimestamp => Count::Replayed,
        WireGuardError::InvalidPacket => Count::Malformed,
        _ => Count::Forged,
    }
}

/// The receiver's index in a response to a handshake.
fn receiver(message: &[u8]) -> Option<u32> {
    message.get(8..12)?.try_into().ok().map(u32::from_le_bytes)
}

// Kinds of messages: WireGuard's paper, section 5.4.
pub(super) const INITIATION: u8 = 1;
pub(super) const RESPONSE: u8 = 2;
pub(super) const COOKIE: u8 = 3;
pub(super) const DATA: u8 = 4;

/// What a message with data has beside them, bytes: a header of 16 and a tag of 16.
pub(super) const OVERHEAD: usize = 32;
/// The largest message that is not data, bytes.
pub(super) const MAX_HANDSHAKE: usize = 148;
/// How often the ticker looks at a peer that is used: WireGuard's timers are seconds.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long after its last packet a peer counts as used: longer than a keepalive and a new handshake after it take (10 s and 15 s).
const AWAKE: Duration = Duration::from_secs(30);
/// How long a handshake is tried: 90 s in WireGuard's paper, section 6.1.
const ATTEMPTS: Duration = Duration::from_secs(95);
/// How often the ticker looks at a peer that is not used but has keys.
const REST: Duration = Duration::from_secs(30);
