//! From peers to the device.

use std::io::{self, IoSliceMut};

use flannel_tunnel::{
    gro::{Gro, Output, PacketRef},
    segment::Offload,
    tun::Queue,
    wire,
};
use quinn_udp::{BATCH_SIZE, RecvMeta};

use super::outbound::Context;
use crate::{
    stats::Counters,
    verdict::{self, DropReason},
};

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
                                write(queue, out, buffers, counters, joins)
                            });
                        } else {
                            write_one(queue, piece.of(buffers), counters);
                        }
                    }
                    Err(reason) => counters.dropped(reason),
                }
            }
        }
        join.flush(|out| write(queue, out, buffers, counters, joins));
        Ok(received)
    }
}

fn write(
    queue: &Queue,
    out: Output<'_>,
    buffers: &[Box<[u8]>],
    counters: &Counters,
    joins: &mut bool,
) {
    let (offload, header, data) = match out {
        Output::Plain(piece) => return write_one(queue, piece.of(buffers), counters),
        Output::Joined { offload, header, data } => (offload, header, data),
    };
    let mut parts: [&[u8]; 1 + flannel_tunnel::gro::MAX_PARTS] = [&[]; _];
    parts[0] = header;
    let mut len = 0;
    for (part, piece) in parts[1..].iter_mut().zip(data) {
        *part = piece.of(buffers);
        len += header.len() + piece.len;
    }
    match queue.write(&offload, &parts[..=data.len()]) {
        Ok(()) => counters.received.add(data.len(), len),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // Some kernels refuse valid large packets: write them one by one.
            *joins = false;
            for piece in data {
                let (at, len) = (piece.at - header.len(), piece.len + header.len());
                write_one(queue, PacketRef { at, len, ..*piece }.of(buffers), counters);
            }
        }
        Err(_) => counters.dropped_many(DropReason::WriteFailed, data.len()),
    }
}

fn write_one(queue: &Queue, packet: &[u8], counters: &Counters) {
    match queue.write(&Offload::default(), &[packet]) {
        Ok(()) => counters.received.add(1, packet.len()),
        Err(_) => counters.dropped(DropReason::WriteFailed),
    }
}

/// The largest message from a socket, bytes.
const MAX_PACKET: usize = 65_536;
