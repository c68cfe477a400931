//! One worker thread of the userspace engine.

use std::{net::IpAddr, num::NonZero, os::fd::AsFd, time::Duration};

use flannel_tunnel::{coalescing::Coalescing, socket::PeerSocket, tun::Queue};
use quinn_udp::BATCH_SIZE;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    thread::set_current_timer_slack,
};
use tokio::time::Instant;

use super::{
    Failure, Shared,
    inbound::Inbound,
    outbound::{BURST, Context, Outbound},
};

/// A queue of the device, a socket per family, and the packets in between.
#[derive(Debug)]
pub(super) struct Worker {
    number: usize,
    queue: Queue,
    sockets: Vec<PeerSocket>,
    own: Vec<IpAddr>,
    outbound: Outbound,
    inbound: Inbound,
    started: Instant,
    /// Consecutive failures to receive.
    failures: u32,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        queue: Queue,
        sockets: Vec<PeerSocket>,
        own: Vec<IpAddr>,
        (joins, udp_gso): &(bool, bool),
    ) -> Self {
        let started = Instant::now();
        Self {
            number,
            queue,
            sockets,
            own,
            outbound: Outbound::new(Duration::ZERO),
            inbound: Inbound::new(*joins, *udp_gso),
            started,
            failures: 0,
        }
    }

    /// Forwards packets until it is stopped or cannot continue.
    pub(super) fn run(mut self, shared: &Shared) {
        if let Err(reason) = self.carry(shared) {
            shared.control.fail(Failure::Broken(reason));
        }
        shared.control.worker_ended();
    }

    fn carry(&mut self, shared: &Shared) -> Result<(), String> {
        // If this fails, pauses last twice as long.
        let _ = set_current_timer_slack(NonZero::new(SLACK_NANOS));
        let mut coalescing = Coalescing::default();
        let mut reader = shared.table.reader();
        let mut seen = [PollFlags::empty(); WATCHED];
        let mut bursts = 0;
        loop {
            // What has arrived is forwarded even then.
            let stops = shared.control.stops();
            let mut context = Context {
                queue: &self.queue,
                sockets: &mut self.sockets,
                table: reader.get(&shared.table),
                counters: &shared.counters[self.number],
                own: &self.own,
                now: self.started.elapsed(),
            };
            let now = context.now;
            let taken = self.outbound.run(&mut context);
            let mut moved =
                taken.map_err(|error| format!("cannot read from the device: {error}"))?;
            let mut has_more = moved == BURST;
            for socket in 0..context.sockets.len() {
                match self.inbound.run(socket, &mut context) {
                    Ok(received) => {
                        moved += received;
                        has_more |= received == BATCH_SIZE;
                        self.failures = 0;
                    }
                    // Usually the error of an earlier datagram.
                    Err(error) if self.failures < MAX_FAILURES => {
                        tracing::debug!(%error, "cannot receive");
                        self.failures += 1;
                    }
                    Err(error) => return Err(format!("cannot receive datagrams: {error}")),
                }
            }
            coalescing.record(moved, now);
            if moved > 0 {
                seen = [PollFlags::empty(); WATCHED];
                bursts += u32::from(stops);
                if bursts == LAST_BURSTS {
                    return Ok(());
                }
                if let Some(pause) = coalescing.pause().filter(|_| !has_more) {
                    pause_polling(shared, pause);
                }
            } else if stops {
                return Ok(());
            } else {
                broken(&seen)?;
                seen = self.wait(shared)?;
            }
        }
    }

    /// Waits until there may be something to do. Returns the events of the device and the sockets.
    fn wait(&self, shared: &Shared) -> Result<[PollFlags; WATCHED], String> {
        // There may be only one socket.
        let watched = |n: usize| match (n, self.sockets.get(n.wrapping_sub(2))) {
            (1, _) => self.queue.as_fd(),
            (_, Some(socket)) => socket.as_fd(),
            _ => shared.control.as_fd(),
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

/// Sleeps for `pause` or until the workers are stopped. Packets that arrive meanwhile wake nobody.
fn pause_polling(shared: &Shared, pause: Duration) {
    let mut fds = [PollFd::new(&shared.control, PollFlags::IN)];
    let pause = Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() };
    let _ = poll(&mut fds, Some(&pause));
}

/// Fails if poll reported an error that reading did not clear: polling again would spin.
fn broken(seen: &[PollFlags]) -> Result<(), String> {
    let is_error =
        |flags: &PollFlags| flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    match seen.iter().position(is_error) {
        Some(0) => Err("the device is gone".into()),
        Some(_) => Err("a socket is broken".into()),
        None => Ok(()),
    }
}

/// How many more bursts a stopping worker forwards: under load there are always more packets.
const LAST_BURSTS: u32 = 16;
/// How late the kernel may end a pause; its default is 50 µs.
const SLACK_NANOS: u64 = 1000;
/// The device and a socket per family.
const WATCHED: usize = 3;
/// Consecutive failures after which a socket counts as broken.
const MAX_FAILURES: u32 = 100;
