//! From the device to peers.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use flannel_tunnel::{
    batch::{Batch, Batches},
    segment::{GSO_NONE, Large, Offload},
    socket::{NotSent, PeerSocket},
    tun::Queue,
    wire::Ip,
};

use crate::{
    icmp::{self, Limiter, Problem},
    stats::Counters,
    table::Table,
    verdict::{self, DropReason},
};

/// Packets on their way to peers, batched so that one system call sends many.
#[derive(Debug)]
pub(super) struct Outbound {
    buffer: Box<[u8]>,
    batches: Batches,
    limiter: Limiter,
}

/// What handling a packet needs.
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
        Self {
            buffer: vec![0; Queue::HEADROOM + MAX_PACKET].into(),
            batches: Batches::default(),
            limiter: Limiter::new(now),
        }
    }

    /// Reads packets from the device until it is empty or a burst is full, and sends them. Returns how many.
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
        let Context { sockets, counters, now, .. } = context;
        self.batches.flush(|batch| send(batch, sockets, counters, *now));
        result
    }

    fn take(
        &mut self,
        offload: Offload,
        len: usize,
        context: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let Self { buffer, batches, limiter } = self;
        let packet = &mut buffer[Queue::HEADROOM..Queue::HEADROOM + len];
        let (ip, to) = match verdict::outbound(packet, context.table) {
            Ok(found) => found,
            Err(reason) => {
                if reason == DropReason::NoRoute
                    && let Ok(ip) = Ip::new_checked(packet)
                {
                    send_icmp_error(&ip, Problem::NoRoute, limiter, context);
                }
                return Err(reason);
            }
        };
        let large = match offload.kind {
            GSO_NONE => None,
            _ => Some(Large::new_checked(&ip, &offload)?),
        };
        let longest = large.map_or(len, |large| large.segment_len());
        if longest > MIN_PATH_MTU {
            let may_be_cut = matches!(ip, Ip::V4(v4) if !v4.dont_fragment());
            let socket = socket_for(context.sockets, to).ok_or(DropReason::SendFailed)?;
            let takes = socket.takes(to, context.now);
            // No IPv6 sender goes below this. The kernel sends the datagram in fragments.
            let takes = if matches!(ip, Ip::V6(_)) { takes.max(MIN_IPV6_MTU) } else { takes };
            if longest > takes && !may_be_cut {
                send_icmp_error(&ip, Problem::TooBig(takes as u32), limiter, context);
                return Err(DropReason::TooBig);
            }
        }
        let Context { sockets, counters, now, .. } = context;
        let send = |batch: &Batch| send(batch, sockets, counters, *now);
        match large {
            Some(large) => batches.add_large(&large, to, send)?,
            None => batches.add(packet, &offload, to, send)?,
        }
        Ok(())
    }
}

/// Sends a batch to its peer.
fn send(batch: &Batch, sockets: &mut [PeerSocket], counters: &Counters, now: Duration) {
    let Some(socket) = socket_for(sockets, batch.to()) else {
        counters.dropped_many(DropReason::SendFailed, batch.count());
        return;
    };
    if batch.count() > 1 && socket.sends_segments() {
        match socket.send(batch.to(), batch.bytes(), batch.size()) {
            Ok(()) => return counters.sent.add(batch.count(), batch.bytes().len()),
            Err(NotSent::TooLarge) => {
                // The path MTU may have shrunk.
                socket.ask(batch.to(), now);
            }
            Err(NotSent::Failed) => {
                counters.dropped_many(DropReason::SendFailed, batch.count());
                return;
            }
        }
    }
    for packet in batch.packets() {
        match socket.send(batch.to(), packet, packet.len()) {
            Ok(()) => counters.sent.add(1, packet.len()),
            Err(_) => counters.dropped(DropReason::SendFailed),
        }
    }
}

fn socket_for(sockets: &mut [PeerSocket], to: SocketAddr) -> Option<&mut PeerSocket> {
    sockets.iter_mut().find(|socket| socket.is_ipv4() == to.is_ipv4())
}

fn send_icmp_error(ip: &Ip<'_>, problem: Problem, limiter: &mut Limiter, context: &Context<'_>) {
    let own = context.own.iter().find(|own| own.is_ipv4() == matches!(ip, Ip::V4(_)));
    // Checked first, so that packets that get no answer do not use up the limit.
    let Some(answer) = own.and_then(|own| icmp::answer(ip, problem, *own)) else {
        return;
    };
    if limiter.allows(context.now) && context.queue.write(&Offload::default(), &[&answer]).is_ok() {
        context.counters.answered.add(1);
    }
}

/// The largest read from a device, bytes.
const MAX_PACKET: usize = 65_536;
/// Packets from the device before it is the sockets' turn.
pub(super) const BURST: usize = 64;
/// The minimum IPv6 link MTU (RFC 8200), bytes.
const MIN_IPV6_MTU: usize = 1280;
/// What every path carries, bytes: that without the outer headers.
const MIN_PATH_MTU: usize = MIN_IPV6_MTU - 48;
