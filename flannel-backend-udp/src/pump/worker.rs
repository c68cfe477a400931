//! One thread of the engine.

use std::{net::IpAddr, os::fd::AsFd, sync::atomic::Ordering};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use tokio::time::Instant;

use super::{
    Failure, Shared,
    inbound::Inbound,
    outbound::{Context, Outbound},
};
use crate::{socket::PeerSocket, tun::Queue};

/// A queue of the device, a socket for each family, and what is on its way between them.
#[derive(Debug)]
pub(super) struct Worker {
    number: usize,
    queue: Queue,
    sockets: Vec<PeerSocket>,
    own: Vec<IpAddr>,
    outbound: Outbound,
    inbound: Inbound,
    started: Instant,
    /// Calls to sockets that failed, one after another.
    failures: u32,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        queue: Queue,
        sockets: Vec<PeerSocket>,
        own: Vec<IpAddr>,
        (joins, joins_udp): &(bool, bool),
    ) -> Self {
        let started = Instant::now();
        Self {
            number,
            queue,
            sockets,
            own,
            outbound: Outbound::new(std::time::Duration::ZERO),
            inbound: Inbound::new(*joins, *joins_udp),
            started,
            failures: 0,
        }
    }

    /// Carries packets until it is stopped or cannot go on.
    pub(super) fn run(mut self, shared: &Shared) {
        if let Err(reason) = self.carry(shared) {
            shared.fail(Failure::Broken(reason));
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }

    fn carry(&mut self, shared: &Shared) -> Result<(), String> {
        let mut reader = shared.table.reader();
        let mut seen = [PollFlags::empty(); WATCHED];
        while !shared.stops() {
            let mut context = Context {
                queue: &self.queue,
                sockets: &mut self.sockets,
                table: reader.get(&shared.table),
                counters: &shared.counters[self.number],
                own: &self.own,
                now: self.started.elapsed(),
            };
            let taken = self.outbound.run(&mut context);
            let mut moved =
                taken.map_err(|error| format!("cannot read from the device: {error}"))?;
            for socket in 0..context.sockets.len() {
                match self.inbound.run(socket, &mut context) {
                    Ok(received) => {
                        moved += received;
                        self.failures = 0;
                    }
                    // Of an earlier datagram, usually.
                    Err(error) if self.failures < MOST_FAILURES => {
                        tracing::debug!(%error, "cannot receive");
                        self.failures += 1;
                    }
                    Err(error) => return Err(format!("cannot receive datagrams: {error}")),
                }
            }
            if moved > 0 {
                seen = [PollFlags::empty(); WATCHED];
            } else {
                broken(&seen)?;
                seen = self.wait(shared)?;
            }
        }
        Ok(())
    }

    /// Waits until there may be something to do, and says what is seen on the device and the sockets.
    fn wait(&self, shared: &Shared) -> Result<[PollFlags; WATCHED], String> {
        // There may be one socket only.
        let watched = |n: usize| match (n, self.sockets.get(n.wrapping_sub(2))) {
            (1, _) => self.queue.as_fd(),
            (_, Some(socket)) => socket.as_fd(),
            _ => shared.wake.as_fd(),
        };
        let mut fds: [PollFd<'_>; 1 + WATCHED] =
            std::array::from_fn(|n| PollFd::from_borrowed_fd(watched(n), PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(format!("cannot wait for packets: {error}")),
        }
        Ok(std::array::from_fn(|n| fds[1 + n].revents()))
    }
}

/// Whether something was said to be amiss, and nothing came of looking after it: looking again would never end.
fn broken(seen: &[PollFlags]) -> Result<(), String> {
    let is_amiss =
        |flags: &PollFlags| flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    match seen.iter().position(is_amiss) {
        Some(0) => Err("the device is gone".into()),
        Some(_) => Err("a socket is broken".into()),
        None => Ok(()),
    }
}

/// The device and a socket for each family.
const WATCHED: usize = 3;
/// So many failures in a row are no accident.
const MOST_FAILURES: u32 = 100;
