//! Packets to peers, gathered so that one call sends many.

use std::net::SocketAddr;

use crate::{
    error::PacketError,
    segment::{Large, Offload, complete_checksum},
    wire,
};

/// What is gathered, for some peers at the same time. Packets to one peer keep their order.
#[derive(Debug)]
pub struct Batches {
    /// The first so many are in use, the oldest first.
    batches: Vec<Batch>,
    used: usize,
}

/// Packets to one peer: all of one length but the last, which may be shorter.
#[derive(Debug)]
pub struct Batch {
    to: SocketAddr,
    size: usize,
    len: usize,
    count: usize,
    is_closed: bool,
    bytes: Box<[u8]>,
}

impl Default for Batches {
    /// Nothing yet, with room for what is to come.
    fn default() -> Self {
        Self { batches: (0..BATCHES).map(|_| Batch::new()).collect(), used: 0 }
    }
}

impl Batches {
    /// Adds the packets that a large one becomes. `send` gets what there is no room for any more.
    pub fn add_large(
        &mut self,
        large: &Large<'_>,
        to: SocketAddr,
        mut send: impl FnMut(&Batch),
    ) -> Result<(), PacketError> {
        if large.segment_len() > MAX_BYTES {
            return Err(PacketError::BadOffload);
        }
        for n in 0..large.count() {
            large.write(n, self.room(to, large.len(n), &mut send));
        }
        Ok(())
    }

    /// Adds a packet as it is, whole and one hop on. `send` gets what there is no room for any more.
    pub fn add(
        &mut self,
        packet: &mut [u8],
        offload: &Offload,
        to: SocketAddr,
        send: impl FnMut(&Batch),
    ) -> Result<(), PacketError> {
        if packet.len() > MAX_BYTES {
            return Err(PacketError::Oversized);
        }
        complete_checksum(packet, offload)?;
        wire::decrement_ttl(packet);
        self.room(to, packet.len(), send).copy_from_slice(packet);
        Ok(())
    }

    /// Lets `send` have all that is left.
    pub fn flush(&mut self, send: impl FnMut(&Batch)) {
        self.batches[..self.used].iter().for_each(send);
        self.used = 0;
    }

    /// Room for the next packet to `to`, of `len` bytes: at most [`MAX_BYTES`]. `send` gets what there is no room for any more.
    ///
    /// # Panics
    ///
    /// If `len` is larger.
    pub fn room(&mut self, to: SocketAddr, len: usize, mut send: impl FnMut(&Batch)) -> &mut [u8] {
        let at = match self.batches[..self.used].iter().position(|batch| batch.to == to) {
            Some(at) => at,
            None if self.used < BATCHES => {
                self.used += 1;
                self.batches[self.used - 1].begin(to);
                self.used - 1
            }
            None => {
                send(&self.batches[0]);
                self.batches.rotate_left(1);
                self.batches[BATCHES - 1].begin(to);
                BATCHES - 1
            }
        };
        let batch = &mut self.batches[at];
        if !batch.takes(len) {
            send(batch);
            batch.begin(to);
        }
        batch.add(len)
    }
}

impl Batch {
    fn new() -> Self {
        let to = SocketAddr::from(([0; 4], 0));
        let bytes = vec![0; MAX_BYTES].into();
        Self { to, size: 0, len: 0, count: 0, is_closed: false, bytes }
    }

    /// Where the peer is.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// How many packets there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The length of all packets but the last, bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// All packets, one behind the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Each packet.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes().chunks(self.size.max(1))
    }

    fn begin(&mut self, to: SocketAddr) {
        (self.to, self.size, self.len, self.count, self.is_closed) = (to, 0, 0, 0, false);
    }

    fn takes(&self, len: usize) -> bool {
        self.count == 0
            || !self.is_closed
                && len <= self.size
                && self.count < MAX_SEGMENTS
                && self.len + len <= MAX_BYTES
    }

    fn add(&mut self, len: usize) -> &mut [u8] {
        if self.count == 0 {
            self.size = len;
        }
        self.is_closed = len < self.size;
        self.count += 1;
        self.len += len;
        &mut self.bytes[self.len - len..self.len]
    }
}

/// What a datagram takes over IPv4, and what several that are sent as one may have together, bytes.
pub const MAX_BYTES: usize = 65_507;
/// What the kernel takes as one: `UDP_MAX_SEGMENTS` before Linux 6.9.
const MAX_SEGMENTS: usize = 64;
/// Peers that are gathered for at the same time.
const BATCHES: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::packets;

    #[test]
    fn a_batch_is_no_more_than_one_call_takes() {
        // By the number of packets, and by their bytes.
        for (len, counts) in [(100, [64, 16]), (1428, [44, 36])] {
            let (to, mut sent) = (SocketAddr::from(([192, 0, 2, 2], 8285)), Vec::new());
            let mut batches = Batches::default();
            let mut send = |batch: &Batch| sent.push(batch.count());
            for _ in 0..80 {
                let mut packet = packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, &vec![7; len]);
                batches.add(&mut packet, &Offload::default(), to, &mut send).unwrap();
            }
            batches.flush(&mut send);
            assert_eq!(sent, counts, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn all_packets_come_out_whole_and_in_the_order_of_their_peer(
            steps in proptest::collection::vec((0u8..12, 1usize..300), 0..300),
        ) {
            let peer = |n: u8| SocketAddr::from(([192, 0, 2, n], 8285));
            let mut batches = Batches::default();
            let (mut added, mut sent) = (Vec::new(), Vec::new());
            let mut send = |batch: &Batch| {
                assert!(batch.count() <= MAX_SEGMENTS && batch.packets().count() == batch.count());
                sent.extend(batch.packets().map(|packet| (batch.to(), packet.to_vec())));
            };
            for (n, (to, len)) in steps.into_iter().enumerate() {
                let len = if len > 200 { 200 } else { len };
                let mut packet = packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, &vec![n as u8; len]);
                batches.add(&mut packet, &Offload::default(), peer(to), &mut send).unwrap();
                prop_assert_eq!(packet[8], 63);
                added.push((peer(to), packet));
            }
            batches.flush(&mut send);
            added.sort_by_key(|(to, _)| *to);
            sent.sort_by_key(|(to, _)| *to);
            prop_assert_eq!(sent, added);
        }
    }
}
