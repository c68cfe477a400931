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
    peer_stats::Direction,
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
                    if let Err((reason, peer)) = self.take(offload, len, context) {
                        context.dropped(peer, reason, 1);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break Ok(taken),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.batches.flush(|batch| send(batch, context));
        result
    }

    /// Fails with the reason, and the peer if there is one.
    fn take(
        &mut self,
        offload: Offload,
        len: usize,
        context: &mut Context<'_>,
    ) -> Result<(), (DropReason, Option<IpAddr>)> {
        let Self { buffer, batches, limiter } = self;
        let packet = &mut buffer[Queue::HEADROOM..Queue::HEADROOM + len];
        let (ip, to) = match verdict::outbound(packet, context.table) {
            Ok(found) => found,
            Err(reason) => {
                let ip = Ip::new_checked(packet).ok();
                if let (DropReason::NoRoute, Some(ip)) = (reason, &ip) {
                    send_icmp_error(ip, Problem::NoRoute, limiter, context);
                }
                let peer = ip.and_then(|ip| context.table.endpoint(ip.destination()));
                return Err((reason, peer.map(|peer| peer.ip())));
            }
        };
        let failed = |reason: DropReason| (reason, Some(to.ip()));
        let large = match offload.kind {
            GSO_NONE => None,
            _ => Some(Large::new_checked(&ip, &offload).map_err(|error| failed(error.into()))?),
        };
        let longest = large.map_or(len, |large| large.segment_len());
        if longest > MIN_PATH_MTU {
            let may_be_cut = matches!(ip, Ip::V4(v4) if !v4.dont_fragment());
            let socket = socket_for(context.sockets, to);
            let socket = socket.ok_or_else(|| failed(DropReason::SendFailed))?;
            let takes = socket.takes(to, context.now);
            // No IPv6 sender goes below this. The kernel sends the datagram in fragments.
            let takes = if matches!(ip, Ip::V6(_)) { takes.max(MIN_IPV6_MTU) } else { takes };
            if longest > takes && !may_be_cut {
                send_icmp_error(&ip, Problem::TooBig(takes as u32), limiter, context);
                return Err(failed(DropReason::TooBig));
            }
        }
        let send = |batch: &Batch| send(batch, context);
        match large {
            Some(large) => batches.add_large(&large, to, send),
            None => batches.add(packet, &offload, to, send),
        }
        .map_err(|error| failed(error.into()))
    }
}

impl Context<'_> {
    fn sent(&self, peer: IpAddr, packets: usize, bytes: usize) {
        self.counters.sent.add(packets, bytes);
        if let Some(peer) = self.table.counters(peer) {
            peer.sent(packets, bytes);
        }
    }

    fn dropped(&self, peer: Option<IpAddr>, reason: DropReason, packets: usize) {
        self.counters.dropped(reason, packets);
        if let Some(peer) = peer.and_then(|peer| self.table.counters(peer)) {
            peer.dropped(Direction::Outbound, reason, packets);
        }
    }
}

/// Sends a batch to its peer.
fn send(batch: &Batch, context: &mut Context<'_>) {
    let (to, peer) = (batch.to(), batch.to().ip());
    let socket =
        socket_for(context.sockets, to).filter(|it| batch.count() > 1 && it.sends_segments());
    if let Some(socket) = socket {
        match socket.send(to, batch.bytes(), batch.size()) {
            Ok(()) => return context.sent(peer, batch.count(), batch.bytes().len()),
            Err(NotSent::TooLarge) => {
                // The path MTU may have shrunk.
                socket.ask(to, context.now);
            }
            Err(NotSent::Failed) => {
                return context.dropped(Some(peer), DropReason::SendFailed, batch.count());
            }
        }
    }
    for packet in batch.packets() {
        let socket = socket_for(context.sockets, to);
        match socket.map(|socket| socket.send(to, packet, packet.len())) {
            Some(Ok(())) => context.sent(peer, 1, packet.len()),
            _ => context.dropped(Some(peer), DropReason::SendFailed, 1),
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
