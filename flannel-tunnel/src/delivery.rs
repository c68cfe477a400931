//! Packets into the device, joined or one by one.

use std::io;

use crate::{
    gro::{MAX_PARTS, Output, PacketRef},
    segment::Offload,
    tun::Queue,
};

/// Counts what became of packets for the device.
pub trait Tally {
    /// One call took so many packets with so many bytes.
    fn written(&self, packets: usize, bytes: usize);

    /// The device took none of so many packets.
    fn not_written(&self, packets: usize);
}

/// Writes what was joined of packets in `buffers`. Where the kernel refuses a large packet, its parts are written one by one, and `joins`
/// is false from then on.
pub fn write(
    queue: &Queue,
    out: Output<'_>,
    buffers: &[Box<[u8]>],
    joins: &mut bool,
    tally: &impl Tally,
) {
    let (offload, header, data) = match out {
        Output::Plain(piece) => return write_one(queue, piece.of(buffers), tally),
        Output::Joined { offload, header, data } => (offload, header, data),
    };
    let mut parts: [&[u8]; 1 + MAX_PARTS] = [&[]; _];
    parts[0] = header;
    let mut len = 0;
    for (part, piece) in parts[1..].iter_mut().zip(data) {
        *part = piece.of(buffers);
        len += header.len() + piece.len;
    }
    match queue.write(&offload, &parts[..=data.len()]) {
        Ok(()) => tally.written(data.len(), len),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // Some kernels refuse valid large packets.
            *joins = false;
            for piece in data {
                let (at, len) = (piece.at - header.len(), piece.len + header.len());
                write_one(queue, PacketRef { at, len, ..*piece }.of(buffers), tally);
            }
        }
        Err(_) => tally.not_written(data.len()),
    }
}

/// Writes a packet as it is.
pub fn write_one(queue: &Queue, packet: &[u8], tally: &impl Tally) {
    match queue.write(&Offload::default(), &[packet]) {
        Ok(()) => tally.written(1, packet.len()),
        Err(_) => tally.not_written(1),
    }
}
