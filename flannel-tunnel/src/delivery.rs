//! Packets into the device, joined or one by one.

use std::io;

use crate::{
    gro::{Gro, MAX_PARTS, Output, PacketRef},
    segment::Offload,
    tun::Queue,
};

/// Counts what became of packets for the device.
pub trait Tally {
    /// One call took these packets. Each had so many more bytes of headers.
    fn written(&self, packets: &[PacketRef], headers: usize);

    /// The device took none of these packets.
    fn not_written(&self, packets: &[PacketRef]);
}

/// The way into the device.
#[derive(Debug)]
pub struct Delivery {
    join: Gro,
    /// Whether the device accepts large packets.
    joins: bool,
}

impl Delivery {
    /// Into a device that accepts large TCP and UDP packets, or not.
    pub fn new((tcp, udp): (bool, bool)) -> Self {
        Self { join: Gro::new(udp), joins: tcp }
    }

    /// Takes a packet in `buffers`, which stay as they are until all is [flushed](Self::flush).
    pub fn push(
        &mut self,
        packet: PacketRef,
        queue: &Queue,
        buffers: &[Box<[u8]>],
        tally: &impl Tally,
    ) {
        let Self { join, joins } = self;
        if *joins {
            join.push(packet, buffers, |out| write(queue, out, buffers, joins, tally));
        } else {
            write_one(queue, packet, buffers, tally);
        }
    }

    /// Writes all that is left.
    pub fn flush(&mut self, queue: &Queue, buffers: &[Box<[u8]>], tally: &impl Tally) {
        let Self { join, joins } = self;
        join.flush(|out| write(queue, out, buffers, joins, tally));
    }
}

/// Writes what was joined of packets in `buffers`. Where the kernel refuses a large packet, its parts are written one by one, and `joins`
/// is false from then on.
fn write(
    queue: &Queue,
    out: Output<'_>,
    buffers: &[Box<[u8]>],
    joins: &mut bool,
    tally: &impl Tally,
) {
    let (offload, header, data) = match out {
        Output::Plain(piece) => return write_one(queue, piece, buffers, tally),
        Output::Joined { offload, header, data } => (offload, header, data),
    };
    let mut parts: [&[u8]; 1 + MAX_PARTS] = [&[]; _];
    parts[0] = header;
    for (part, piece) in parts[1..].iter_mut().zip(data) {
        *part = piece.of(buffers);
    }
    match queue.write(&offload, &parts[..=data.len()]) {
        Ok(()) => tally.written(data, header.len()),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // Some kernels refuse valid large packets.
            *joins = false;
            for piece in data {
                let (at, len) = (piece.at - header.len(), piece.len + header.len());
                write_one(queue, PacketRef { at, len, ..*piece }, buffers, tally);
            }
        }
        Err(_) => tally.not_written(data),
    }
}

/// Writes a packet as it is.
fn write_one(queue: &Queue, packet: PacketRef, buffers: &[Box<[u8]>], tally: &impl Tally) {
    match queue.write(&Offload::default(), &[packet.of(buffers)]) {
        Ok(()) => tally.written(&[packet], 0),
        Err(_) => tally.not_written(&[packet]),
    }
}
