//! From the device to peers.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    icmp::{self, Limiter, Problem},
    segment::{GSO_NONE, Large, Offload, complete_checksum},
    socket::{NotSent, PeerSocket},
    stats::Counters,
    table::Table,
    tun::Queue,
    verdict::{self, DropReason},
    wire::{self, Ip},
};

/// Packets on their way to peers, gathered so that one call sends many.
#[derive(Debug)]
pub(super) struct Outbound {
    buffer: Box<[u8]>,
    /// The first so many are in use, the oldest first.
    batches: Vec<Batch>,
    used: usize,
    limiter: Limiter,
}

/// Packets to one peer: all of one length but the last, which may be shorter.
#[derive(Debug)]
struct Batch {
    to: SocketAddr,
    size: usize,
    len: usize,
    count: usize,
    is_closed: bool,
    bytes: Box<[u8]>,
}

/// What handling of packets needs besides.
pub(super) struct Context<'a> {
    pub(super) queue: &'a Queue,
    pub(super) sockets: &'a mut [PeerSocket],
    pub(super) table: &'a Table,
    pub(super) counters: &'a Counters,
    /// The addresses of our device.
    pub(super) own: &'a [IpAddr],
    pub(super) now: Duration,
}

impl Outbound {
    pub(super) fn new(now: Duration) -> Self {
        let batch = || Batch {
            to: SocketAddr::from(([0; 4], 0)),
            size: 0,
            len: 0,
            count: 0,
            is_closed: false,
            bytes: vec![0; MOST_BYTES].into(),
        };
        Self {
            buffer: vec![0; Queue::HEADROOM + LARGEST].into(),
            batches: (0..BATCHES).map(|_| batch()).collect(),
            used: 0,
            limiter: Limiter::new(now),
        }
    }

    /// Takes packets from the device until it has no more, or a burst is full, and sends them. Says how many.
    pub(super) fn run(&mut self, context: &mut Context<'_>) -> std::io::Result<usize> {
        let mut taken = 0;
        let result = loop {
            if taken == BURST {
                break Ok(taken);
            }
            match context.queue.read(&mut self.buffer) {
                Ok((offload, len)) => {
                    taken += 1;
                    if let Err(reason) = self.take(offload, len, context) {
                        context.counters.dropped(reason);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break Ok(taken),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        for batch in &mut self.batches[..self.used] {
            batch.send(context);
        }
        self.used = 0;
        result
    }

    fn take(
        &mut self,
        offload: Offload,
        len: usize,
        context: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let Self { buffer, batches, used, limiter } = self;
        let packet = &mut buffer[Queue::HEADROOM..Queue::HEADROOM + len];
        let (ip, to) = match verdict::outbound(packet, context.table) {
            Ok(found) => found,
            Err(reason) => {
                if reason == DropReason::NoRoute
                    && let Ok(ip) = Ip::new_checked(packet)
                {
                    tell(&ip, Problem::NoRoute, limiter, context);
                }
                return Err(reason);
            }
        };
        let large = match offload.kind {
            GSO_NONE => None,
            _ => Some(Large::new_checked(&ip, &offload)?),
        };
        let longest = large.map_or(len, |large| large.segment_len());
        if longest > SMALL {
            let may_be_cut = matches!(ip, Ip::V4(v4) if !v4.dont_fragment());
            let socket = socket_for(context.sockets, to).ok_or(DropReason::SendFailed)?;
            let takes = socket.takes(to, context.now);
            if longest > takes && !may_be_cut {
                tell(&ip, Problem::TooBig(takes as u32), limiter, context);
                return Err(DropReason::TooBig);
            }
        }
        if let Some(large) = large {
            let segment_len = large.segment_len();
            if segment_len > MOST_BYTES {
                return Err(DropReason::BadOffload);
            }
            for n in 0..large.count() {
                let room = room(batches, used, to, large.len(n), context);
                large.write(n, room);
            }
            return Ok(());
        }
        complete_checksum(packet, &offload)?;
        wire::decrement_ttl(packet);
        if packet.len() > MOST_BYTES {
            return Err(DropReason::Oversized);
        }
        room(batches, used, to, packet.len(), context).copy_from_slice(packet);
        Ok(())
    }
}

/// Room for the next packet to `to`, of this length.
fn room<'a>(
    batches: &'a mut [Batch],
    used: &mut usize,
    to: SocketAddr,
    len: usize,
    context: &mut Context<'_>,
) -> &'a mut [u8] {
    let at = match batches[..*used].iter().position(|batch| batch.to == to) {
        Some(at) => at,
        None if *used < BATCHES => {
            *used += 1;
            batches[*used - 1].begin(to);
            *used - 1
        }
        None => {
            batches[0].send(context);
            batches.rotate_left(1);
            batches[BATCHES - 1].begin(to);
            BATCHES - 1
        }
    };
    let batch = &mut batches[at];
    if !batch.takes(len) {
        batch.send(context);
        batch.begin(to);
    }
    batch.add(len)
}

impl Batch {
    fn begin(&mut self, to: SocketAddr) {
        (self.to, self.size, self.len, self.count, self.is_closed) = (to, 0, 0, 0, false);
    }

    fn takes(&self, len: usize) -> bool {
        self.count == 0
            || !self.is_closed
                && len <= self.size
                && self.count < MOST_SEGMENTS
                && self.len + len <= MOST_BYTES
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

    fn send(&mut self, context: &mut Context<'_>) {
        let counters = context.counters;
        let bytes = &self.bytes[..self.len];
        let Some(socket) = socket_for(context.sockets, self.to) else {
            counters.dropped_many(DropReason::SendFailed, self.count);
            return;
        };
        if self.count > 1 && socket.sends_segments() {
            match socket.send(self.to, bytes, self.size) {
                Ok(()) => return counters.sent.add(self.count, self.len),
                Err(NotSent::TooLarge) => {
                    // The way to the peer may have become smaller.
                    socket.ask(self.to, context.now);
                }
                Err(NotSent::Failed) => {
                    counters.dropped_many(DropReason::SendFailed, self.count);
                    return;
                }
            }
        }
        for packet in bytes.chunks(self.size.max(1)) {
            match socket.send(self.to, packet, packet.len()) {
                Ok(()) => counters.sent.add(1, packet.len()),
                Err(_) => counters.dropped(DropReason::SendFailed),
            }
        }
    }
}

fn socket_for(sockets: &mut [PeerSocket], to: SocketAddr) -> Option<&mut PeerSocket> {
    sockets.iter_mut().find(|socket| socket.is_ipv4() == to.is_ipv4())
}

fn tell(ip: &Ip<'_>, problem: Problem, limiter: &mut Limiter, context: &Context<'_>) {
    let own = context.own.iter().find(|own| own.is_ipv4() == matches!(ip, Ip::V4(_)));
    // Looked at first, so that what is not answered uses nothing up.
    let Some(answer) = own.and_then(|own| icmp::answer(ip, problem, *own)) else {
        return;
    };
    if limiter.allows(context.now) && context.queue.write(&Offload::default(), &[&answer]).is_ok() {
        context.counters.answered.add(1);
    }
}

/// What a device may hand over at once, bytes.
const LARGEST: usize = 65_536;
/// What a datagram takes over IPv4, and what several that are sent as one may have together, bytes.
const MOST_BYTES: usize = 65_507;
/// What the kernel takes as one: `UDP_MAX_SEGMENTS` before Linux 6.9.
const MOST_SEGMENTS: usize = 64;
/// Peers that are gathered for at the same time.
const BATCHES: usize = 8;
/// Packets from the device before those of peers have their turn.
const BURST: usize = 64;
/// What every path takes, bytes: RFC 8200 without the outer headers.
const SMALL: usize = 1280 - 48;
