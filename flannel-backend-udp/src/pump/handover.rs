//! How one engine takes the place of another, in this process or in an older one.
//!
//! The engine that carries a device's packets listens on a socket whose name says the device, in the network namespace's own
//! name space. Whoever connects takes over, if it is the same user or root; the connection ends when the last worker has.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::Ordering,
    time::Duration,
};

use flannel_netlink::Namespace;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
};
use tracing::{debug, info};

use super::{Failure, Shared};

/// Has the engine stop that carries the packets of this device, if there is one, and takes its name. `None` if the name cannot
/// be had: then this engine cannot be told to stop.
pub(super) fn take_over(namespace: &Namespace, index: u32) -> Option<UnixListener> {
    let address = SocketAddr::from_abstract_name(format!("flannel-udp.{index}")).ok()?;
    let took = namespace.run(|| {
        if let Ok(stream) = UnixStream::connect_addr(&address) {
            info!("taking over from an engine that runs");
            wait_for_end(&stream);
        }
        UnixListener::bind_addr(&address)
    });
    match took {
        Ok(Ok(listener)) => Some(listener),
        Ok(Err(error)) => {
            debug!(%error, "cannot listen for who takes over");
            None
        }
        Err(error) => {
            debug!(%error, "cannot listen for who takes over");
            None
        }
    }
}

/// Waits until somebody takes over or the engine stops.
pub(super) fn guard(listener: Option<UnixListener>, shared: &Shared) {
    let Some(listener) = listener else { return };
    while !shared.stops() {
        let mut fds =
            [PollFd::new(&shared.wake, PollFlags::IN), PollFd::new(&listener, PollFlags::IN)];
        if poll(&mut fds, None).is_err() || fds[1].revents().is_empty() {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        if is_allowed(&stream) {
            // The name is free before the other end sees the end of the connection.
            drop(listener);
            shared.fail(Failure::TakenOver);
            // Workers finish what they have in hand.
            while shared.running.load(Ordering::Acquire) > 0 {
                let mut fds = [PollFd::new(&stream, PollFlags::RDHUP)];
                if poll(&mut fds, Some(&MOMENT)) != Ok(0) {
                    return;
                }
            }
            return;
        }
    }
}

fn wait_for_end(stream: &UnixStream) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut byte = [0];
    let _ = io::Read::read(&mut &*stream, &mut byte);
}

fn is_allowed(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid();
    socket_peercred(stream).is_ok_and(|peer| peer.uid == ours || peer.uid.is_root())
}

/// How long an engine is waited for: the gap that a restart may have.
const PATIENCE: Duration = Duration::from_millis(100);
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000 };
