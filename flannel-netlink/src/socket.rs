use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use socket2::{SockFilter, SockRef};
use tokio::io::unix::AsyncFd;
use zeroize::Zeroize;

use crate::{Namespace, OpenError};

/// What the kernel is asked about, or tells of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Protocol {
    /// `NETLINK_GENERIC`: whatever has no protocol of its own.
    Generic,
    /// `NETLINK_NETFILTER`: rules, tracked connections.
    Netfilter,
    /// `NETLINK_ROUTE`: devices, addresses, routes.
    Route,
}

/// A bound, non-blocking netlink socket inside a namespace.
#[derive(Debug)]
pub(crate) struct KernelSocket {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    port: u32,
    receive_bytes: usize,
    protocol: Protocol,
    /// What the socket was handed over to. Fields are dropped in their order: this one has to be open until the socket is not.
    heir: Option<[OwnedFd; 2]>,
}

impl KernelSocket {
    /// Opens the socket on a thread inside `namespace`; it stays there.
    ///
    /// `receive_bytes` is the receive buffer to ask for. Without privilege in the initial user
    /// namespace the kernel grants less, see [`receive_bytes`](Self::receive_bytes).
    pub(crate) fn open(
        namespace: &Namespace,
        protocol: Protocol,
        receive_bytes: usize,
    ) -> Result<Self, OpenError> {
        let number = match protocol {
            Protocol::Generic => NETLINK_GENERIC,
            Protocol::Netfilter => NETLINK_NETFILTER,
            Protocol::Route => NETLINK_ROUTE,
        };
        let inside = namespace.run(|| -> io::Result<_> {
            let mut socket = Socket::new(number)?;
            let port = socket.bind_auto()?.port_number();
            socket.set_non_blocking(true)?;
            Ok((socket, port))
        });
        let failed = |source| OpenError::Socket { source };
        let (socket, port) =
            inside.map_err(|source| OpenError::Namespace { source })?.map_err(failed)?;
        if setsockopt(&socket, RcvBufForce, &receive_bytes).is_err() {
            let bytes = libc::c_int::try_from(receive_bytes).unwrap_or(libc::c_int::MAX);
            socket.set_rx_buf_sz(bytes).map_err(failed)?;
        }
        socket.set_ext_ack(true).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        let receive_bytes = socket.get_rx_buf_sz().map_err(failed)?;
        #[expect(
            deprecated,
            reason = "the replacement is unsafe; a Socket owns its one descriptor"
        )]
        let socket = AsyncFd::new(socket).map_err(failed)?;
        Ok(Self { socket, buffer: Vec::new(), port, receive_bytes, protocol, heir: None })
    }

    pub(crate) fn options(&self) -> &Socket {
        self.socket.get_ref()
    }

    /// Has the kernel queue only what `program` takes. Replaces an earlier one.
    pub(crate) fn attach_filter(&self, program: &[SockFilter]) -> io::Result<()> {
        SockRef::from(self.socket.get_ref()).attach_filter(program)
    }

    /// Our address on netlink. Notifications of changes made through this socket carry it.
    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// The receive buffer the kernel granted, with its own bookkeeping counted in.
    pub(crate) const fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    /// Sends one datagram to the kernel, which works on all of it before this returns.
    pub(crate) async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let kernel = SocketAddr::new(0, 0);
        loop {
            match self.socket.get_ref().send_to(datagram, &kernel, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.writable().await?.clear_ready();
                }
                result => return result.map(drop),
            }
        }
    }

    /// The next datagram from the kernel.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: a datagram is taken from the socket in the same poll that
    /// returns it.
    pub(crate) async fn receive(&mut self) -> io::Result<&[u8]> {
        loop {
            if self.take_waiting()? {
                return Ok(&self.buffer);
            }
            let mut ready = self.socket.readable().await?;
            // A datagram may have come between the two lines above. Readiness is edge triggered, so
            // it is cleared only after a read that found nothing.
            let (socket, buffer) = (ready.get_inner(), &mut self.buffer);
            match read(socket, buffer)? {
                true => return Ok(&self.buffer),
                false => ready.clear_ready(),
            }
        }
    }

    /// Waits until there may be something to read. What comes after a [`receive_waiting`](Self::receive_waiting) that found
    /// nothing makes readable again.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await.map(|mut ready| ready.clear_ready())
    }

    /// The next datagram that is already there, without waiting.
    pub(crate) fn receive_waiting(&mut self) -> io::Result<Option<&[u8]>> {
        Ok(self.take_waiting()?.then_some(&self.buffer))
    }

    /// Overwrites the datagram that was received last, and others of which a part is left behind it.
    pub(crate) fn wipe(&mut self) {
        self.buffer.zeroize();
    }

    fn take_waiting(&mut self) -> io::Result<bool> {
        let is_there = read(self.socket.get_ref(), &mut self.buffer)?;
        // Who waits needs no room. Where keys may be in it, it is kept until it is wiped.
        if !is_there && self.protocol != Protocol::Generic {
            self.buffer = Vec::new();
        }
        Ok(is_there)
    }
}

impl Drop for KernelSocket {
    /// Who closes a netfilter socket soon after something was deleted in nf_tables waits for an RCU grace period, about 10 ms, and
    /// so does a process that ends with one. What was deleted has no effect any more by then, so this leaves the closing to the
    /// kernel, which does it in a thread of its own since Linux 6.9.
    fn drop(&mut self) {
        if self.protocol == Protocol::Netfilter {
            // What cannot be handed over is closed here.
            self.heir = hand_over(self.socket.get_ref()).ok();
        }
    }
}

/// Puts the socket into the queue of another one that is itself in that queue. As soon as nobody has that one open, the kernel's
/// garbage collector for sockets in queues closes both.
fn hand_over(socket: &Socket) -> io::Result<[OwnedFd; 2]> {
    let (sender, heir) =
        socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let both = [heir.as_fd(), socket.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&both));
    sendmsg(&sender, &[IoSlice::new(&[0])], &mut control, SendFlags::DONTWAIT)?;
    // The heir goes first: the kernel looks when the sender is closed, and by then nobody may have the heir open.
    Ok([heir, sender])
}

/// Reads one datagram of the kernel into `buffer`; false when there is none. Datagrams of other
/// processes are dropped.
fn read(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        buffer.clear();
        buffer.reserve_exact(DATAGRAM_BYTES);
        match socket.recv_from(buffer, libc::MSG_TRUNC) {
            Ok((length, _)) if length > buffer.len() => {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            Ok((_, sender)) if sender.port_number() == 0 => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// The largest datagram the kernel sends: a dump fills at most 32 KiB, and one message is smaller
/// than that.
const DATAGRAM_BYTES: usize = 64 << 10;
