//! The threads of an engine: how they start, wait for packets, pause, and end.

use std::{io, num::NonZero, os::fd::BorrowedFd, sync::Arc, thread};

use flannel_netlink::Namespace;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    thread::set_current_timer_slack,
};
use tokio::time::Instant;

use crate::{
    coalescing::Coalescing,
    control::{Control, Failure},
    handover,
};

/// The threads of an engine, and what they share. They keep running when this is dropped.
#[derive(Debug)]
pub struct Workers<S> {
    shared: Arc<S>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// What one look for packets found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// How many there were.
    pub packets: usize,
    /// Whether there may be more.
    pub has_more: bool,
}

impl<S: AsRef<Control> + Send + Sync + 'static> Workers<S> {
    /// None yet.
    pub fn new(shared: S) -> Self {
        Self { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// What they share.
    pub fn shared(&self) -> &Arc<S> {
        &self.shared
    }

    /// Starts one, which is counted as ended when `run` returns. All end if that is with the reason why it cannot go on.
    ///
    /// # Errors
    ///
    /// The kernel's, when there are too many threads.
    pub fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce(&S) -> Result<(), String> + Send + 'static,
    ) -> io::Result<()> {
        self.start(name, move |shared| {
            let control = shared.as_ref();
            if let Err(reason) = run(shared) {
                control.fail(Failure::Broken(reason));
            }
            control.worker_ended();
        })
    }

    /// Ends the engine that serves `device` in `namespace`, if there is one, and lets this one be ended likewise by the next. It receives
    /// packets until it stops; queues and sockets here buffer the rest.
    ///
    /// # Errors
    ///
    /// The kernel's, when there are too many threads.
    pub fn take_over(&mut self, namespace: &Namespace, device: &str) -> io::Result<()> {
        let listener = handover::take_over(namespace, device);
        self.start("engine-guard".into(), move |shared| handover::guard(listener, shared.as_ref()))
    }

    fn start(&mut self, name: String, run: impl FnOnce(&S) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::Builder::new().name(name).spawn(move || run(&shared))?);
        Ok(())
    }

    /// Stops all and waits for them.
    pub fn stop(self) {
        self.shared.as_ref().as_ref().stop();
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Lets `look` carry packets until it is to stop, or cannot go on. Each of `watched` becomes readable when there are packets, and comes
/// with what it means if it breaks.
///
/// # Errors
///
/// The reason why it cannot go on.
pub fn carry(
    control: &Control,
    watched: &[(BorrowedFd<'_>, &str)],
    mut look: impl FnMut(Instant) -> Result<Found, String>,
) -> Result<(), String> {
    // If this fails, pauses last twice as long.
    let _ = set_current_timer_slack(NonZero::new(SLACK_NANOS));
    let mut coalescing = Coalescing::default();
    let started = Instant::now();
    let fds = watched.iter().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
    let mut fds: Vec<_> = fds.chain([PollFd::new(control, PollFlags::IN)]).collect();
    let (mut bursts, mut broken) = (0, None);
    loop {
        // What has arrived is carried even then.
        let stops = control.stops();
        let now = Instant::now();
        let Found { packets, has_more } = look(now)?;
        coalescing.record(packets, now.duration_since(started));
        if packets > 0 {
            broken = None;
            bursts += u32::from(stops);
            if bursts == LAST_BURSTS {
                return Ok(());
            }
            if let Some(pause) = coalescing.pause().filter(|_| !has_more) {
                // Packets that arrive meanwhile wake nobody.
                let pause = Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() };
                let _ = poll(&mut fds[watched.len()..], Some(&pause));
            }
        } else if stops {
            return Ok(());
        } else if let Some(broken) = broken {
            // There was an error that looking did not clear: polling again would spin.
            return Err(broken);
        } else {
            wait(&mut fds, None)?;
            let is_error = |fd: &PollFd<'_>| {
                fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
            };
            let first = watched.iter().zip(&fds).find(|(_, fd)| is_error(fd));
            broken = first.map(|((_, meaning), _)| (*meaning).to_owned());
        }
    }
}

/// Waits until one of `fds` has something to tell.
///
/// # Errors
///
/// The kernel's reason, in words.
pub fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<(), String> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(format!("cannot wait for packets: {error}")),
    }
}

/// Lets `take` read and handle one packet after the other, until there are none or a burst is full.
///
/// # Errors
///
/// The reason why nothing can be read, in words.
pub fn burst(mut take: impl FnMut() -> io::Result<()>) -> Result<Found, String> {
    let mut packets = 0;
    while packets < BURST {
        match take() {
            Ok(()) => packets += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("cannot read from the device: {error}")),
        }
    }
    Ok(Found { packets, has_more: packets == BURST })
}

/// Packets from the device before it is the sockets' turn, or looked whether to stop.
const BURST: usize = 64;
/// How many more bursts a stopping thread carries: under load there are always more packets.
const LAST_BURSTS: u32 = 16;
/// How late the kernel may end a pause; its default is 50 µs.
const SLACK_NANOS: u64 = 1000;
