//! How an engine takes over a device from another, in this process or in an older one.
//!
//! The engine that serves a device listens on an abstract Unix socket named after the device, which is local to the network namespace. A
//! connection from the same user or root is a request to stop; it is closed after the last worker has ended.

use std::{
    io,
    os::{
        fd::BorrowedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use flannel_netlink::Namespace;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
};
use tracing::{debug, info};

/// An engine that another one may take over from.
pub trait Engine {
    /// Readable once the engine is to stop.
    fn wake(&self) -> BorrowedFd<'_>;

    /// Whether the engine is to stop.
    fn stops(&self) -> bool;

    /// Lets the engine stop, because another one takes over.
    fn taken_over(&self);

    /// Whether one of its workers has not ended.
    fn runs(&self) -> bool;
}

/// Stops the engine that serves the device of `name` in `namespace`, if there is one, and takes over its socket name. `None` if the
/// name cannot be bound: this engine cannot be taken over then.
pub fn take_over(namespace: &Namespace, name: &str) -> Option<UnixListener> {
    let address = SocketAddr::from_abstract_name(name).ok()?;
    let took = namespace.run(|| {
        if let Ok(stream) = UnixStream::connect_addr(&address) {
            info!("taking over from a running engine");
            wait_for_end(&stream);
        }
        UnixListener::bind_addr(&address)
    });
    match took {
        Ok(Ok(listener)) => Some(listener),
        Ok(Err(error)) => {
            debug!(%error, "cannot listen for take-over requests");
            None
        }
        Err(error) => {
            debug!(%error, "cannot listen for take-over requests");
            None
        }
    }
}

/// Waits until another engine takes over from `engine`, or it stops.
pub fn guard(listener: Option<UnixListener>, engine: &impl Engine) {
    let Some(listener) = listener else { return };
    while !engine.stops() {
        let mut fds = [
            PollFd::from_borrowed_fd(engine.wake(), PollFlags::IN),
            PollFd::new(&listener, PollFlags::IN),
        ];
        if poll(&mut fds, None).is_err() || fds[1].revents().is_empty() {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        if is_allowed(&stream) {
            // The name must be free before the other end sees the connection closed.
            drop(listener);
            engine.taken_over();
            // Workers finish their current burst.
            while engine.runs() {
                let mut fds = [PollFd::new(&stream, PollFlags::RDHUP)];
                if poll(&mut fds, Some(&STOP_POLL_INTERVAL)) != Ok(0) {
                    return;
                }
            }
            return;
        }
    }
}

fn wait_for_end(stream: &UnixStream) {
    let _ = stream.set_read_timeout(Some(TAKE_OVER_TIMEOUT));
    let mut byte = [0];
    let _ = io::Read::read(&mut &*stream, &mut byte);
}

fn is_allowed(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid();
    socket_peercred(stream).is_ok_and(|peer| peer.uid == ours || peer.uid.is_root())
}

/// How long to wait for the other engine: the longest gap a restart may have.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_millis(100);
const STOP_POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000 };
