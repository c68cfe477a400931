//! The threads of the engine.

use std::{num::NonZero, os::fd::AsFd, sync::Arc, time::Duration};

use flannel_tunnel::{coalescing::Coalescing, socket::PeerSocket, tun::Queue};
use quinn_udp::BATCH_SIZE;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    thread::set_current_timer_slack,
};
use tokio::time::Instant;

use super::{
    Shared,
    inbound::Inbound,
    outbound::{BURST, Context, Outbound},
    session::{MAX_HANDSHAKE, OVERHEAD, Session},
    ticker::Agenda,
};

/// What one thread works with: its number, a queue of the device, and a socket per family.
pub(super) struct Worker {
    number: usize,
    queue: Arc<Queue>,
    sockets: Arc<[PeerSocket]>,
}

impl Worker {
    pub(super) fn new(number: usize, queue: Arc<Queue>, sockets: Arc<[PeerSocket]>) -> Self {
        Self { number, queue, sockets }
    }

    /// Carries packets of the device to peers until it is to stop.
    pub(super) fn send(&self, shared: &Shared) -> Result<(), String> {
        let mut outbound = Outbound::new();
        self.carry(shared, &[self.queue.as_fd()], |context| {
            let taken = outbound.run(context);
            let taken = taken.map_err(|error| format!("cannot read from the device: {error}"))?;
            Ok((taken, taken == BURST))
        })
    }

    /// Carries packets of peers to the device until it is to stop.
    pub(super) fn receive(&self, shared: &Shared, joins: (bool, bool)) -> Result<(), String> {
        let mut inbound = Inbound::new(joins.0, joins.1);
        let fds: Vec<_> = self.sockets.iter().map(AsFd::as_fd).collect();
        let mut failures = 0;
        self.carry(shared, &fds, |context| {
            let (mut moved, mut has_more) = (0, false);
            for socket in 0..context.sockets.len() {
                match inbound.run(socket, context) {
                    Ok(received) => {
                        moved += received;
                        has_more |= received == BATCH_SIZE;
                        failures = 0;
                    }
                    // Usually the error of an earlier datagram.
                    Err(_) if failures < MAX_FAILURES => failures += 1,
                    Err(error) => return Err(format!("cannot receive datagrams: {error}")),
                }
            }
            Ok((moved, has_more))
        })
    }

    /// Does what is due by time until it is to stop.
    pub(super) fn tick(&self, shared: &Shared) -> Result<(), String> {
        let mut agenda = Agenda::default();
        let mut scratch = vec![0; MAX_QUEUED + OVERHEAD + MAX_HANDSHAKE];
        let mut reader = shared.routing.reader();
        while !shared.control.stops() {
            let now = Instant::now();
            let context = self.context(shared, reader.get(&shared.routing), now);
            let is_there = |session: &Arc<Session>| {
                let known = context.routing.of_key(&session.key);
                known.is_some_and(|known| Arc::ptr_eq(known, session))
            };
            let next = agenda.run(&shared.alarm, now, is_there, |session| {
                let mut state = session.lock();
                state.tick(now, &mut scratch, &mut |to, message| context.send(to, message))
            });
            let mut fds = [
                PollFd::new(&shared.control, PollFlags::IN),
                PollFd::new(&shared.alarm.fd, PollFlags::IN),
            ];
            let timeout = next.map(|next| Timespec {
                tv_sec: next.as_secs() as _,
                tv_nsec: next.subsec_nanos().into(),
            });
            wait(&mut fds, timeout.as_ref())?;
        }
        Ok(())
    }

    fn carry(
        &self,
        shared: &Shared,
        watched: &[std::os::fd::BorrowedFd<'_>],
        mut run: impl FnMut(&Context<'_>) -> Result<(usize, bool), String>,
    ) -> Result<(), String> {
        // If this fails, pauses last twice as long.
        let _ = set_current_timer_slack(NonZero::new(SLACK_NANOS));
        let mut coalescing = Coalescing::default();
        let mut reader = shared.routing.reader();
        let started = Instant::now();
        let mut fds: Vec<_> =
            watched.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        fds.push(PollFd::new(&shared.control, PollFlags::IN));
        let (mut bursts, mut is_broken) = (0, false);
        loop {
            // What has arrived is carried even then.
            let stops = shared.control.stops();
            let now = Instant::now();
            let context = self.context(shared, reader.get(&shared.routing), now);
            let (moved, has_more) = run(&context)?;
            coalescing.record(moved, now.duration_since(started));
            if moved > 0 {
                is_broken = false;
                bursts += u32::from(stops);
                if bursts == LAST_BURSTS {
                    return Ok(());
                }
                if let Some(pause) = coalescing.pause().filter(|_| !has_more) {
                    self.pause(shared, pause);
                }
            } else if stops {
                return Ok(());
            } else if is_broken {
                // Polling again would spin.
                return Err("the device is gone, or a socket is broken".into());
            } else {
                wait(&mut fds, None)?;
                let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
                is_broken = fds[..watched.len()].iter().any(|fd| fd.revents().intersects(broken));
            }
        }
    }

    /// Sleeps for `pause` or until threads are to stop. Packets that arrive meanwhile wake nobody.
    fn pause(&self, shared: &Shared, pause: Duration) {
        let mut fds = [PollFd::new(&shared.control, PollFlags::IN)];
        let pause = Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() };
        let _ = poll(&mut fds, Some(&pause));
    }

    fn context<'a>(
        &'a self,
        shared: &'a Shared,
        routing: &'a super::routing::Routing,
        now: Instant,
    ) -> Context<'a> {
        let Self { number, queue, sockets } = self;
        let counters = &shared.counters[*number];
        Context { shared, routing, queue, sockets, counters, now }
    }
}

fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<(), String> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(format!("cannot wait for packets: {error}")),
    }
}

/// How many more bursts a stopping thread carries: under load there are always more packets.
const LAST_BURSTS: u32 = 16;
/// How late the kernel may end a pause; its default is 50 µs.
const SLACK_NANOS: u64 = 1000;
/// Consecutive failures after which a socket counts as broken.
const MAX_FAILURES: u32 = 100;
/// The largest packet that may wait for a session, bytes.
const MAX_QUEUED: usize = 65_536;
