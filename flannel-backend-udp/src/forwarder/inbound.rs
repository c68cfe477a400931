//! From peers to the device.

use std::io::{self, IoSliceMut};

use flannel_tunnel::{
    delivery::{self, Tally},
    gro::{Gro, PacketRef},
    wire,
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
    buffers: Vec<Box<[u8]>>,
    meta: [RecvMeta; BATCH_SIZE],
    join: Gro,
    /// Whether the device accepts large packets.
    joins: bool,
}

impl Inbound {
    pub(super) fn new(joins: bool, udp_gso: bool) -> Self {
        Self {
            buffers: (0..BATCH_SIZE).map(|_| vec![0; MAX_PACKET].into()).collect(),
            meta: [RecvMeta::default(); BATCH_SIZE],
            join: Gro::new(udp_gso),
            joins,
        }
    }

    /// Receives from one of the sockets and writes to the device. Returns how many messages the kernel had.
    pub(super) fn run(&mut self, socket: usize, context: &mut Context<'_>) -> io::Result<usize> {
        let Self { buffers, meta, join, joins } = self;
        let received = {
            let mut slices = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer));
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| slices.next().expect("as many buffers"));
            context.sockets[socket].receive(&mut slices, meta)?
        };
        let (queue, counters, table) = (context.queue, context.counters, context.table);
        let meta = &meta[..received];
        let sender = |n: usize| meta.get(n).and_then(|meta| table.counters(meta.addr.ip()));
        let tally = Received { counters, senders: std::array::from_fn(sender) };
        let mut verdict = verdict::Inbound::new(table);
        for (buffer, meta) in meta.iter().enumerate() {
            let stride = meta.stride.max(1);
            let from = meta.addr.ip();
            if meta.len == 0 {
                tally.dropped(buffer, DropReason::Truncated, 1);
            }
            for at in (0..meta.len).step_by(stride) {
                let piece = PacketRef { buffer, at, len: stride.min(meta.len - at) };
                let packet = &mut buffers[buffer][at..at + piece.len];
                match verdict.judge(packet, from) {
                    Ok(_) => {
                        wire::decrement_ttl(packet);
                        if *joins {
                            join.push(piece, buffers, |out| {
                                delivery::write(queue, out, buffers, joins, &tally)
                            });
                        } else {
                            delivery::write_one(queue, piece, buffers, &tally);
                        }
                    }
                    Err(reason) => tally.dropped(buffer, reason, 1),
                }
            }
        }
        join.flush(|out| delivery::write(queue, out, buffers, joins, &tally));
        Ok(received)
    }
}

/// The largest message from a socket, bytes.
const MAX_PACKET: usize = 65_536;
