//! From peers to the device.

use std::{net::SocketAddr, sync::Arc};

use boringtun::noise::{Packet, TunnResult, handshake::parse_handshake_anon};
use flannel_netlink::wireguard::PublicKey;
use flannel_tunnel::{
    delivery::{Delivery, Tally},
    gro::PacketRef,
    inbox::{self, Inbox, MAX_MESSAGE},
    tun::Queue,
    wire::Ip,
    worker::Found,
};

use super::{
    counters::{Count, Counters},
    outbound::{Context, of_packet},
    session::{COOKIE, DATA, INITIATION, MAX_HANDSHAKE, OVERHEAD, RESPONSE, Received, Session},
};

impl Tally for Counters {
    fn written(&self, packets: &[PacketRef], headers: usize) {
        self.add(Count::PacketsReceived, packets.len());
        self.add(Count::BytesReceived, packets.iter().map(|piece| headers + piece.len).sum());
        self.add(Count::CallsReceived, 1);
    }

    fn not_written(&self, packets: &[PacketRef]) {
        self.add(Count::WriteFailed, packets.len());
    }
}

/// Messages from peers, and the packets that they carry.
pub(super) struct Inbound {
    inbox: Inbox,
    /// What is decrypted, at the places where it was encrypted.
    plain: Vec<Box<[u8]>>,
    opened: Vec<PacketRef>,
    opener: Opener,
    delivery: Delivery,
}

/// What takes messages apart: no sockets and no device.
pub(super) struct Opener {
    scratch: Box<[u8]>,
}

impl Inbound {
    /// Into a device that accepts large TCP and UDP packets, or not.
    pub(super) fn new(joins: (bool, bool)) -> Self {
        Self {
            inbox: Inbox::default(),
            plain: inbox::buffers(),
            opened: Vec::new(),
            opener: Opener::new(),
            delivery: Delivery::new(joins),
        }
    }

    /// Receives from the sockets and writes to the device.
    pub(super) fn run(&mut self, queue: &Queue, context: &Context<'_>) -> Result<Found, String> {
        let Self { inbox, plain, opened, opener, delivery } = self;
        let counters = context.counters;
        inbox.receive(context.sockets, |buffers, meta| {
            for (number, meta) in meta.iter().enumerate() {
                let messages = (&buffers[number][..meta.len], meta.stride.max(1));
                opener.open(messages, meta.addr, (number, &mut plain[number]), opened, context);
                for piece in opened.drain(..) {
                    delivery.push(piece, queue, plain, counters);
                }
            }
            delivery.flush(queue, plain, counters);
        })
    }
}

impl Opener {
    pub(super) fn new() -> Self {
        Self { scratch: vec![0; MAX_MESSAGE + OVERHEAD + MAX_HANDSHAKE].into() }
    }

    /// Takes in messages of `stride` bytes each from one sender. Packets for the device are decrypted to `plain`, the buffer of this
    /// number, and added to `opened`.
    pub(super) fn open(
        &mut self,
        (bytes, stride): (&[u8], usize),
        from: SocketAddr,
        (number, plain): (usize, &mut [u8]),
        opened: &mut Vec<PacketRef>,
        context: &Context<'_>,
    ) {
        let mut messages =
            bytes.chunks(stride).zip(plain.chunks_mut(stride)).enumerate().peekable();
        while let Some((n, (message, out))) = messages.next() {
            let Some(index) = data_index(message) else {
                if let Err(count) = self.handshake(message, from, context) {
                    context.counters.add(count, 1);
                }
                continue;
            };
            let Some(session) = context.routing.of_index(index) else {
                context.counters.add(Count::NoSession, 1);
                self.greet(from, context);
                continue;
            };
            // The peer stays locked for all that follows of it, and no longer than for one batch.
            let mut state = session.lock();
            let mut send = |to: SocketAddr, message: &[u8]| context.send(to, message);
            if state.touch(context.now, &mut self.scratch, &mut send) {
                context.shared.wake(session);
            }
            let (mut n, mut message, mut out, mut index) = (n, message, out, index);
            let mut is_lost = false;
            loop {
                let scratch = &mut self.scratch;
                match state.open(message, (index, from), out, scratch, context.now, &mut send) {
                    Ok(Received::Keepalive) => {}
                    Ok(Received::Packet(len)) => match check(&out[..len], session, context) {
                        Ok(()) => opened.push(PacketRef { buffer: number, at: n * stride, len }),
                        Err(count) => context.counters.add(count, 1),
                    },
                    Err(count) => {
                        is_lost |= count == Count::NoSession;
                        context.counters.add(count, 1);
                    }
                }
                let same = |next: u32| next >> 8 == index >> 8;
                let next = messages.next_if(|(_, (next, _))| data_index(next).is_some_and(same));
                let Some((number, (next, room))) = next else { break };
                index = data_index(next).unwrap_or(index);
                (n, message, out) = (number, next, room);
            }
            drop(state);
            if is_lost {
                self.greet(from, context);
            }
        }
    }

    /// Begins a handshake with the peer at `from`, which has a session that we do not have, as after a restart.
    fn greet(&mut self, from: SocketAddr, context: &Context<'_>) {
        let Some(session) = context.routing.of_endpoint(from) else { return };
        let mut state = session.lock();
        let mut send = |to: SocketAddr, message: &[u8]| context.send(to, message);
        if state.has_session() {
            return;
        }
        if state.touch(context.now, &mut self.scratch, &mut send) {
            context.shared.wake(session);
        }
        state.begin(&mut self.scratch, context.now, &mut send);
    }

    /// Takes in a message that carries no data.
    fn handshake(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        context: &Context<'_>,
    ) -> Result<(), Count> {
        if !matches!(message.first(), Some(&(INITIATION | RESPONSE | COOKIE))) {
            return Err(Count::Malformed);
        }
        let identity = &context.shared.identity;
        identity.limiter.reset_count();
        let mut cookie = [0; MAX_HANDSHAKE];
        let session = match identity.limiter.verify_packet(Some(from.ip()), message, &mut cookie) {
            Ok(Packet::HandshakeInit(initiation)) => {
                let half = parse_handshake_anon(&identity.private, &identity.public, &initiation);
                let half = half.map_err(|_| Count::Forged)?;
                let key = PublicKey::new(half.peer_static_public);
                context.routing.of_key(&key).ok_or(Count::UnknownPeer)?
            }
            Ok(Packet::HandshakeResponse(response)) => {
                context.routing.of_index(response.receiver_idx).ok_or(Count::NoSession)?
            }
            Ok(Packet::PacketCookieReply(reply)) => {
                context.routing.of_index(reply.receiver_idx).ok_or(Count::NoSession)?
            }
            Ok(Packet::PacketData(_)) => return Err(Count::Malformed),
            Err(TunnResult::WriteToNetwork(reply)) => {
                context.counters.add(Count::CookiesSent, 1);
                context.send(from, reply);
                return Ok(());
            }
            Err(TunnResult::Err(boringtun::noise::errors::WireGuardError::InvalidPacket)) => {
                return Err(Count::Malformed);
            }
            Err(_) => return Err(Count::Forged),
        };
        let mut send = |to: SocketAddr, message: &[u8]| context.send(to, message);
        let mut state = session.lock();
        state.handshake(message, from, &mut self.scratch, context.now, &mut send)?;
        context.counters.add(Count::Handshakes, 1);
        if state.touch(context.now, &mut self.scratch, &mut send) {
            context.shared.wake(session);
        }
        Ok(())
    }
}

/// The receiver's index in a message with data.
fn data_index(message: &[u8]) -> Option<u32> {
    let is_data = message.len() >= OVERHEAD && message[..4] == [DATA, 0, 0, 0];
    is_data.then(|| u32::from_le_bytes([message[4], message[5], message[6], message[7]]))
}

/// Whether a packet is one, and its source is an address of the peer that sent it.
fn check(packet: &[u8], session: &Arc<Session>, context: &Context<'_>) -> Result<(), Count> {
    let ip = Ip::new_checked(packet).map_err(of_packet)?;
    match context.routing.find(ip.source()) {
        Some(owner) if Arc::ptr_eq(owner, session) => Ok(()),
        _ => Err(Count::SpoofedSource),
    }
}
