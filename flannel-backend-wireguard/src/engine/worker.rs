//! The threads of the engine.

use std::{os::fd::AsFd, sync::Arc};

use flannel_tunnel::{socket::PeerSocket, tun::Queue, worker};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::time::Instant;

use super::{
    Shared,
    inbound::Inbound,
    outbound::{Context, Outbound},
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
        let (mut outbound, mut reader) = (Outbound::new(), shared.routing.reader());
        let watched = [(self.queue.as_fd(), "the device is gone")];
        worker::carry(&shared.control, &watched, |now| {
            let context = self.context(shared, reader.get(&shared.routing), now);
            outbound.run(&self.queue, &context)
        })
    }

    /// Carries packets of peers to the device until it is to stop.
    pub(super) fn receive(&self, shared: &Shared, joins: (bool, bool)) -> Result<(), String> {
        let (mut inbound, mut reader) = (Inbound::new(joins), shared.routing.reader());
        let watched = self.sockets.iter().map(|socket| (socket.as_fd(), "a socket is broken"));
        worker::carry(&shared.control, &watched.collect::<Vec<_>>(), |now| {
            let context = self.context(shared, reader.get(&shared.routing), now);
            inbound.run(&self.queue, &context)
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
            worker::wait(&mut fds, timeout.as_ref())?;
        }
        Ok(())
    }

    fn context<'a>(
        &'a self,
        shared: &'a Shared,
        routing: &'a super::routing::Routing,
        now: Instant,
    ) -> Context<'a> {
        let counters = &shared.counters[self.number];
        Context { shared, routing, sockets: &self.sockets, counters, now }
    }
}

/// The largest packet that may wait for a session, bytes.
const MAX_QUEUED: usize = 65_536;
