//! From the device to peers.

use std::net::SocketAddr;

use flannel_tunnel::{
    batch::{Batch, Batches, MAX_BYTES},
    error::PacketError,
    segment::{GSO_NONE, Large, Offload, complete_checksum},
    socket::{PeerSocket, SentTally},
    tun::Queue,
    wire::Ip,
    worker::{self, Found},
};
use tokio::time::Instant;

use super::{
    Shared,
    counters::{Count, Counters},
    routing::Routing,
    session::{DATA, MAX_HANDSHAKE, OVERHEAD, State},
};

/// Packets on their way to peers, encrypted and gathered so that one system call sends many.
pub(super) struct Outbound {
    buffer: Box<[u8]>,
    plain: Box<[u8]>,
    scratch: Box<[u8]>,
    batches: Batches,
}

/// What handling packets needs.
pub(super) struct Context<'a> {
    pub(super) shared: &'a Shared,
    pub(super) routing: &'a Routing,
    pub(super) sockets: &'a [PeerSocket],
    pub(super) counters: &'a Counters,
    pub(super) now: Instant,
}

impl Outbound {
    pub(super) fn new() -> Self {
        let buffer = |len: usize| vec![0; len].into_boxed_slice();
        Self {
            buffer: buffer(Queue::HEADROOM + MAX_PACKET + PADDING),
            plain: buffer(MAX_PACKET + PADDING),
            scratch: buffer(MAX_PACKET + PADDING + OVERHEAD + MAX_HANDSHAKE),
            batches: Batches::default(),
        }
    }

    /// Reads packets from the device until it is empty or a burst is full, and sends them.
    pub(super) fn run(&mut self, queue: &Queue, context: &Context<'_>) -> Result<Found, String> {
        let end = Queue::HEADROOM + MAX_PACKET;
        let found = worker::burst(|| {
            let (offload, len) = queue.read(&mut self.buffer[..end])?;
            if let Err(count) = self.take(offload, len, context) {
                context.counters.add(count, 1);
            }
            Ok(())
        });
        self.batches.flush(|batch| context.send_batch(batch));
        found
    }

    fn take(&mut self, offload: Offload, len: usize, context: &Context<'_>) -> Result<(), Count> {
        let Self { buffer, plain, scratch, batches } = self;
        let packet = &mut buffer[Queue::HEADROOM..];
        let ip = Ip::new_checked(&packet[..len]).map_err(of_packet)?;
        let session = context.routing.find(ip.destination()).ok_or(Count::NoRoute)?;
        let mut state = session.lock();
        let to = state.config.endpoint.ok_or(Count::NoRoute)?;
        let mut out = |to: SocketAddr, message: &[u8]| context.send(to, message);
        if state.touch(context.now, scratch, &mut out) {
            context.shared.wake(session);
        }
        if offload.kind == GSO_NONE {
            complete_checksum(&mut packet[..len], &offload).map_err(of_packet)?;
            return seal(&mut state, packet, len, to, (batches, scratch), context);
        }
        let large = Large::new_checked(&ip, &offload).map_err(of_packet)?;
        for n in 0..large.count() {
            large.write_unrouted(n, plain);
            seal(&mut state, plain, large.len(n), to, (batches, scratch), context)?;
        }
        Ok(())
    }
}

/// Encrypts the first `len` bytes of `packet` for a peer, or keeps them until it has a session.
fn seal(
    state: &mut State,
    packet: &mut [u8],
    len: usize,
    to: SocketAddr,
    (batches, scratch): (&mut Batches, &mut [u8]),
    context: &Context<'_>,
) -> Result<(), Count> {
    let padded = padded(len, context.shared.mtu());
    packet[len..padded].fill(0);
    if padded + OVERHEAD > MAX_BYTES {
        return Err(Count::BadOffload);
    }
    if state.has_session() {
        let room = batches.room(to, padded + OVERHEAD, |batch| context.send_batch(batch));
        state.seal(&packet[..padded], room, context.now);
    } else {
        let mut out = |to: SocketAddr, message: &[u8]| context.send(to, message);
        state.enqueue(&packet[..len], scratch, context.now, &mut out);
    }
    Ok(())
}

/// To how many bytes a packet is padded, so that its length says less: WireGuard's paper, section 5.4.6. Not beyond the MTU.
fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(PADDING).min(mtu.max(len))
}

impl Context<'_> {
    /// Sends a message that is alone.
    pub(super) fn send(&self, to: SocketAddr, message: &[u8]) {
        let sent = PeerSocket::to(self.sockets, to);
        let sent = sent.map(|socket| socket.send(to, message, message.len()));
        if sent != Some(Ok(())) {
            self.counters.not_sent(to, 1);
        } else if message[0] == DATA && message.len() > OVERHEAD {
            // It has waited for a session.
            self.counters.sent(to, 1, message.len());
        }
    }

    fn send_batch(&self, batch: &Batch) {
        // What is too large is sent in fragments.
        let _ = PeerSocket::send_batch(self.sockets, batch, self.counters);
    }
}

impl SentTally for Counters {
    fn sent(&self, _: SocketAddr, messages: usize, bytes: usize) {
        self.add(Count::PacketsSent, messages);
        self.add(Count::BytesSent, bytes - messages * OVERHEAD);
        self.add(Count::CallsSent, 1);
    }

    fn not_sent(&self, _: SocketAddr, messages: usize) {
        self.add(Count::SendFailed, messages);
    }
}

pub(super) fn of_packet(error: PacketError) -> Count {
    match error {
        PacketError::BadOffload => Count::BadOffload,
        _ => Count::Malformed,
    }
}

/// The largest read from a device, bytes.
const MAX_PACKET: usize = 65_536;
/// Bytes.
const PADDING: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_padded_up_to_the_mtu() {
        assert_eq!(padded(0, 1420), 0, "a keepalive");
        assert_eq!(padded(61, 1420), 64);
        assert_eq!(padded(1418, 1420), 1420);
        assert_eq!(padded(1420, 1420), 1420);
        assert_eq!(padded(1430, 1420), 1430, "larger than it may be, as after the MTU shrank");
    }
}
