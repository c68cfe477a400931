//! From peers to the device.

use flannel_tunnel::{
    delivery::{Delivery, Tally},
    gro::PacketRef,
    inbox::Inbox,
    wire,
    worker::Found,
};
use quinn_udp::{BATCH_SIZE, RecvMeta};

use super::outbound::Context;
use crate::{
    peer_stats::{Direction, PeerCounters},
    stats::Counters,
    verdict::{self, DropReason},
};

/// Counts what the worker received, and from whom.
struct Received<'a> {
    counters: &'a Counters,
    /// Who sent what is in each buffer.
    senders: [Option<&'a PeerCounters>; BATCH_SIZE],
}

impl Received<'_> {
    fn dropped(&self, buffer: usize, reason: DropReason, packets: usize) {
        self.counters.dropped(reason, packets);
        if let Some(sender) = self.senders[buffer] {
            sender.dropped(Direction::Inbound, reason, packets);
        }
    }
}

impl Tally for Received<'_> {
    fn written(&self, packets: &[PacketRef], headers: usize) {
        let bytes = |packets: &[PacketRef]| packets.iter().map(|piece| headers + piece.len).sum();
        self.counters.received.add(packets.len(), bytes(packets));
        for packets in packets.chunk_by(|a, b| a.buffer == b.buffer) {
            if let Some(sender) = self.senders[packets[0].buffer] {
                sender.received(packets.len(), bytes(packets));
            }
        }
    }

    fn not_written(&self, packets: &[PacketRef]) {
        for piece in packets {
            self.dropped(piece.buffer, DropReason::WriteFailed, 1);
        }
    }
}

/// Packets on their way from peers, coalesced where the device accepts large packets.
#[derive(Debug)]
pub(super) struct Inbound {
    inbox: Inbox,
    delivery: Delivery,
}

impl Inbound {
    /// Into a device that accepts large TCP and UDP packets, or not.
    pub(super) fn new(joins: (bool, bool)) -> Self {
        Self { inbox: Inbox::default(), delivery: Delivery::new(joins) }
    }

    /// Receives from the sockets and writes to the device.
    pub(super) fn run(&mut self, context: &Context<'_>) -> Result<Found, String> {
        let Self { inbox, delivery } = self;
        inbox.receive(context.sockets, |buffers, meta| take(buffers, meta, delivery, context))
    }
}

fn take(
    buffers: &mut [Box<[u8]>],
    meta: &[RecvMeta],
    delivery: &mut Delivery,
    context: &Context<'_>,
) {
    let Context { queue, counters, table, .. } = *context;
    let sender = |n: usize| meta.get(n).and_then(|meta| table.counters(meta.addr.ip()));
    let tally = Received { counters, senders: std::array::from_fn(sender) };
    let mut verdict = verdict::Inbound::new(table);
    for (buffer, meta) in meta.iter().enumerate() {
        let stride = meta.stride.max(1);
        if meta.len == 0 {
            tally.dropped(buffer, DropReason::Truncated, 1);
        }
        for at in (0..meta.len).step_by(stride) {
            let piece = PacketRef { buffer, at, len: stride.min(meta.len - at) };
            let packet = &mut buffers[buffer][at..at + piece.len];
            match verdict.judge(packet, meta.addr.ip()) {
                Ok(_) => {
                    wire::decrement_ttl(packet);
                    delivery.push(piece, queue, buffers, &tally);
                }
                Err(reason) => tally.dropped(buffer, reason, 1),
            }
        }
    }
    delivery.flush(queue, buffers, &tally);
}
