//! From the device to peers.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use flannel_tunnel::{
    batch::{Batch, Batches},
    path_mtus::PathMtus,
    segment::{GSO_NONE, Large, Offload},
    socket::{NotSent, PeerSocket, SentTally},
    tun::Queue,
    wire::Ip,
    worker::{self, Found},
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
    paths: PathMtus,
    limiter: Limiter,
}

/// What handling a packet needs.
pub(super) struct Context<'a> {
    pub(super) queue: &'a Queue,
    pub(super) sockets: &'a [PeerSocket],
    pub(super) table: &'a Table,
    pub(super) counters: &'a Counters,
    /// The addresses of our device.
    pub(super) own: &'a [IpAddr],
    pub(super) now: Duration,
}

impl Outbound {
    pub(super) fn new(paths: PathMtus) -> Self {
        Self {
            buffer: vec![0; Queue::HEADROOM + MAX_PACKET].into(),
            batches: Batches::default(),
            paths,
            limiter: Limiter::new(Duration::ZERO),
        }
    }

    /// Reads packets from the device until it is empty or a burst is full, and sends them.
    pub(super) fn run(&mut self, context: &Context<'_>) -> Result<Found, String> {
        let found = worker::burst(|| {
            let (offload, len) = context.queue.read(&mut self.buffer)?;
            if let Err((reason, peer)) = self.take(offload, len, context) {
                context.dropped(peer, reason, 1);
            }
            Ok(())
        });
        let Self { batches, paths, .. } = self;
        batches.flush(|batch| send(batch, paths, context));
        found
    }

    /// Fails with the reason, and the peer if there is one.
    fn take(
        &mut self,
        offload: Offload,
        len: usize,
        context: &Context<'_>,
    ) -> Result<(), (DropReason, Option<IpAddr>)> {
        let Self { buffer, batches, paths, limiter } = self;
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
            let takes = paths.takes(to, context.now);
            // No IPv6 sender goes below this. The kernel sends the datagram in fragments.
            let takes = if matches!(ip, Ip::V6(_)) { takes.max(MIN_IPV6_MTU) } else { takes };
            if longest > takes && !may_be_cut {
                send_icmp_error(&ip, Problem::TooBig(takes as u32), limiter, context);
                return Err(failed(DropReason::TooBig));
            }
        }
        let send = |batch: &Batch| send(batch, paths, context);
        match large {
            Some(large) => batches.add_large(&large, to, send),
            None => batches.add(packet, &offload, to, send),
        }
        .map_err(|error| failed(error.into()))
    }
}

impl Context<'_> {
    fn dropped(&self, peer: Option<IpAddr>, reason: DropReason, packets: usize) {
        self.counters.dropped(reason, packets);
        if let Some(peer) = peer.and_then(|peer| self.table.counters(peer)) {
            peer.dropped(Direction::Outbound, reason, packets);
        }
    }
}

impl SentTally for Context<'_> {
    fn sent(&self, to: SocketAddr, packets: usize, bytes: usize) {
        self.counters.sent.add(packets, bytes);
        if let Some(peer) = self.table.counters(to.ip()) {
            peer.sent(packets, bytes);
        }
    }

    fn not_sent(&self, to: SocketAddr, packets: usize) {
        self.dropped(Some(to.ip()), DropReason::SendFailed, packets);
    }
}

/// Sends a batch to its peer.
fn send(batch: &Batch, paths: &mut PathMtus, context: &Context<'_>) {
    if PeerSocket::send_batch(context.sockets, batch, context) == Err(NotSent::TooLarge) {
        // The path MTU may have shrunk.
        paths.ask(batch.to(), context.now);
    }
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
/// The minimum IPv6 link MTU (RFC 8200), bytes.
const MIN_IPV6_MTU: usize = 1280;
/// What every path carries, bytes: that without the outer headers.
const MIN_PATH_MTU: usize = MIN_IPV6_MTU - 48;
