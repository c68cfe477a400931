use std::io;

use nix::libc;

use crate::{
    Message, Namespace, OpenError,
    socket::{KernelSocket, Protocol},
    wire::messages,
};

/// A socket that receives the kernel's notifications of some multicast groups in one namespace, as they are on the wire.
///
/// [`Monitor`](crate::Monitor) reads those of routing; this is for protocols that this crate has no types for.
#[derive(Debug)]
pub struct Subscription {
    socket: KernelSocket,
}

impl Subscription {
    /// Joins `groups` of `protocol` in `namespace`. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the namespace cannot be entered, the socket cannot be made, or the kernel has no such group.
    pub fn open(
        namespace: &Namespace,
        protocol: Protocol,
        groups: &[u32],
    ) -> Result<Self, OpenError> {
        let socket = KernelSocket::open(namespace, protocol, QUEUE_BYTES)?;
        for group in groups {
            let joined = socket.options().add_membership(*group);
            joined.map_err(|source| OpenError::Socket { source })?;
        }
        Ok(Self { socket })
    }

    /// Waits until there are notifications, or until some were lost.
    ///
    /// # Errors
    ///
    /// When the socket cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Gives all notifications that are there to `each`, and returns whether some were lost before them.
    ///
    /// # Errors
    ///
    /// When the socket cannot be read.
    pub fn drain(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let mut lost = false;
        loop {
            match self.socket.receive_waiting() {
                Ok(Some(datagram)) => messages(datagram).for_each(|message| each(&message)),
                Ok(None) => return Ok(lost),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) => return Err(error),
            }
        }
    }
}

/// What we ask as queue: some thousands of notifications.
const QUEUE_BYTES: usize = 1 << 20;
