//! One worker thread of the userspace engine.

use std::{net::IpAddr, os::fd::AsFd};

use flannel_tunnel::{
    path_mtus::PathMtus,
    socket::PeerSocket,
    tun::Queue,
    worker::{self, Found},
};
use tokio::time::Instant;

use super::{
    Shared,
    inbound::Inbound,
    outbound::{Context, Outbound},
};

/// A queue of the device, a socket per family, and the packets in between.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: usize,
    pub(super) queue: Queue,
    pub(super) sockets: Vec<PeerSocket>,
    pub(super) paths: PathMtus,
    /// The addresses of the device.
    pub(super) own: Vec<IpAddr>,
    /// Whether the device accepts large TCP and UDP packets.
    pub(super) joins: (bool, bool),
}

impl Worker {
    /// Forwards packets until it is stopped or cannot continue.
    pub(super) fn run(self, shared: &Shared) -> Result<(), String> {
        let Self { number, queue, sockets, paths, own, joins } = self;
        let (mut outbound, mut inbound) = (Outbound::new(paths), Inbound::new(joins));
        let (mut reader, started) = (shared.table.reader(), Instant::now());
        let mut watched = vec![(queue.as_fd(), "the device is gone")];
        watched.extend(sockets.iter().map(|socket| (socket.as_fd(), "a socket is broken")));
        worker::carry(&shared.control, &watched, |now| {
            let context = Context {
                queue: &queue,
                sockets: &sockets,
                table: reader.get(&shared.table),
                counters: &shared.counters[number],
                own: &own,
                now: now.duration_since(started),
            };
            let (sent, received) = (outbound.run(&context)?, inbound.run(&context)?);
            Ok(Found {
                packets: sent.packets + received.packets,
                has_more: sent.has_more || received.has_more,
            })
        })
    }
}
