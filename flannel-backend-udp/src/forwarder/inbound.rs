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
    stats::Counters,
    verdict::{self, DropReason},
};

impl Tally for Counters {
    fn written(&self, packets: usize, bytes: usize) {
        self.received.add(packets, bytes);
    }

    fn not_written(&self, packets: usize) {
        self.dropped_many(DropReason::WriteFailed, packets);
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
        let (queue, counters) = (context.queue, context.counters);
        let mut verdict = verdict::Inbound::new(context.table);
        for (buffer, meta) in meta[..received].iter().enumerate() {
            let stride = meta.stride.max(1);
            let from = meta.addr.ip();
            if meta.len == 0 {
                counters.dropped(DropReason::Truncated);
            }
            for at in (0..meta.len).step_by(stride) {
                let piece = PacketRef { buffer, at, len: stride.min(meta.len - at) };
                let packet = &mut buffers[buffer][at..at + piece.len];
                match verdict.judge(packet, from) {
                    Ok(_) => {
                        wire::decrement_ttl(packet);
                        if *joins {
                            join.push(piece, buffers, |out| {
                                delivery::write(queue, out, buffers, joins, counters)
                            });
                        } else {
                            delivery::write_one(queue, piece.of(buffers), counters);
                        }
                    }
                    Err(reason) => counters.dropped(reason),
                }
            }
        }
        join.flush(|out| delivery::write(queue, out, buffers, joins, counters));
        Ok(received)
    }
}

/// The largest message from a socket, bytes.
const MAX_PACKET: usize = 65_536;
