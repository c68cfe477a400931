//! Messages from sockets.

use std::io::IoSliceMut;

use quinn_udp::{BATCH_SIZE, RecvMeta};

use crate::{socket::PeerSocket, worker::Found};

/// Room for what sockets have.
#[derive(Debug)]
pub struct Inbox {
    buffers: Vec<Box<[u8]>>,
    meta: [RecvMeta; BATCH_SIZE],
    /// Consecutive failures to receive.
    failures: u32,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { buffers: buffers(), meta: [RecvMeta::default(); BATCH_SIZE], failures: 0 }
    }
}

/// As many buffers as there may be messages at once, each for the largest.
pub fn buffers() -> Vec<Box<[u8]>> {
    (0..BATCH_SIZE).map(|_| vec![0; MAX_MESSAGE].into()).collect()
}

impl Inbox {
    /// Lets `take` have what each socket has: the messages, and what the kernel says of each.
    ///
    /// # Errors
    ///
    /// The kernel's, in words, when it has failed too often.
    pub fn receive(
        &mut self,
        sockets: &[PeerSocket],
        mut take: impl FnMut(&mut [Box<[u8]>], &[RecvMeta]),
    ) -> Result<Found, String> {
        let Self { buffers, meta, failures } = self;
        let mut found = Found::default();
        for socket in sockets {
            let received = {
                let mut slices = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer));
                let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                    std::array::from_fn(|_| slices.next().expect("as many buffers"));
                socket.receive(&mut slices, meta)
            };
            match received {
                Ok(received) => {
                    if received > 0 {
                        take(buffers, &meta[..received]);
                    }
                    found.packets += received;
                    found.has_more |= received == BATCH_SIZE;
                    *failures = 0;
                }
                // Usually the error of an earlier datagram.
                Err(error) if *failures < MAX_FAILURES => {
                    tracing::debug!(%error, "cannot receive");
                    *failures += 1;
                }
                Err(error) => return Err(format!("cannot receive datagrams: {error}")),
            }
        }
        Ok(found)
    }
}

/// The largest message from a socket, bytes.
pub const MAX_MESSAGE: usize = 65_536;
/// Consecutive failures after which a socket counts as broken.
const MAX_FAILURES: u32 = 100;
