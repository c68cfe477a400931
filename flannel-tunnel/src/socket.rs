//! The socket that datagrams to and from peers pass.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use flannel_netlink::Namespace;
use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::sockopt::UdpGroSegment};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::batch::Batch;

/// A socket of one worker, for one family.
#[derive(Debug)]
pub struct PeerSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whether the kernel sends several datagrams for one call.
    segments: bool,
    /// Whether the kernel joins datagrams before we see them.
    joins: bool,
    is_ipv4: bool,
}

/// Counts what became of datagrams for peers.
pub trait SentTally {
    /// One call took so many datagrams with so many bytes.
    fn sent(&self, to: SocketAddr, datagrams: usize, bytes: usize);

    /// The kernel took none of so many datagrams.
    fn not_sent(&self, to: SocketAddr, datagrams: usize);
}

/// Why datagrams were not sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotSent {
    /// They cannot be sent as one: to be tried one by one.
    TooLarge,
    /// The kernel does not send them.
    Failed,
}

impl PeerSocket {
    /// Opens a socket in `namespace` that shares `local` with those of other workers, and takes datagrams joined if `joins`.
    /// Routers may cut IPv4 datagrams unless `path_mtu_discovery` asks them to say what the path takes.
    pub fn open(
        namespace: &Namespace,
        local: SocketAddr,
        joins: bool,
        path_mtu_discovery: bool,
    ) -> io::Result<Self> {
        let socket = namespace.run(|| bound(local)).map_err(io::Error::other)??;
        let state = UdpSocketState::new((&socket).into())?;
        // A path that is found to be small must not lose packets that may not be told so: those are sent in fragments, as
        // flannel does.
        if local.is_ipv4() {
            let how = match path_mtu_discovery {
                true => Ipv4PathMtuDiscovery::WANT,
                false => Ipv4PathMtuDiscovery::DONT,
            };
            sockopt::set_ip_mtu_discover(&socket, how)?;
        } else {
            sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::WANT)?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6DontFrag, &false)?;
            // As BPF programs send them.
            nix::sys::socket::setsockopt(&socket, NoChecksumIpv6, &true)?;
        }
        let joins = joins && state.gro_segments() > 1;
        if !joins {
            // Kernels that do not join know no such option.
            let _ = nix::sys::socket::setsockopt(&socket, UdpGroSegment, &false);
        }
        let segments = state.max_gso_segments() > 1;
        Ok(Self { socket, state, segments, joins, is_ipv4: local.is_ipv4() })
    }

    /// The one of `sockets` by which `peer` is reached.
    pub fn to(sockets: &[Self], peer: SocketAddr) -> Option<&Self> {
        sockets.iter().find(|socket| socket.is_ipv4 == peer.is_ipv4())
    }

    /// Sends a batch by one of `sockets`, one by one what the kernel does not take as one.
    ///
    /// # Errors
    ///
    /// [`NotSent::TooLarge`] if that was so because of a size: the path MTU may have shrunk.
    pub fn send_batch(
        sockets: &[Self],
        batch: &Batch,
        tally: &impl SentTally,
    ) -> Result<(), NotSent> {
        let to = batch.to();
        let Some(socket) = Self::to(sockets, to) else {
            tally.not_sent(to, batch.count());
            return Ok(());
        };
        let mut result = Ok(());
        if batch.count() > 1 && socket.segments {
            result = socket.send(to, batch.bytes(), batch.size());
            match result {
                Ok(()) => tally.sent(to, batch.count(), batch.bytes().len()),
                Err(NotSent::Failed) => tally.not_sent(to, batch.count()),
                Err(NotSent::TooLarge) => {}
            }
            if result != Err(NotSent::TooLarge) {
                return Ok(());
            }
        }
        for packet in batch.packets() {
            match socket.send(to, packet, packet.len()) {
                Ok(()) => tally.sent(to, 1, packet.len()),
                Err(_) => tally.not_sent(to, 1),
            }
        }
        result
    }

    /// Whether [`send`](Self::send) takes several datagrams.
    pub fn sends_segments(&self) -> bool {
        self.segments
    }

    /// Whether [`receive`](Self::receive) gives several datagrams of a peer as one.
    pub fn receives_joined(&self) -> bool {
        self.joins
    }

    /// Sends `bytes` as datagrams of `size` bytes each, the last of which may be shorter.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], size: usize) -> Result<(), NotSent> {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: bytes,
            segment_size: (size < bytes.len()).then_some(size),
            src_ip: None,
        };
        for _ in 0..ATTEMPTS {
            let Err(error) = self.state.try_send((&self.socket).into(), &transmit) else {
                return Ok(());
            };
            if error.kind() == io::ErrorKind::WouldBlock {
                // The network card is behind. Packets wait in the device meanwhile.
                let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
                let _ = poll(&mut fds, Some(&SEND_TIMEOUT));
            } else if transmit.segment_size.is_some() && is_about_size(&error) {
                return Err(NotSent::TooLarge);
            }
        }
        Err(NotSent::Failed)
    }

    /// Takes in what has come. 0 if that is nothing.
    pub fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        match self.state.recv((&self.socket).into(), buffers, meta) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }
}

impl AsFd for PeerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

sockopt_impl!(
    /// Takes datagrams without a checksum over IPv6.
    NoChecksumIpv6,
    SetOnly,
    libc::IPPROTO_UDP,
    UDP_NO_CHECK6_RX,
    bool
);
/// linux/udp.h.
const UDP_NO_CHECK6_RX: libc::c_int = 102;

/// What a datagram adds to a packet, bytes: an IP header of 20 or 40 and a UDP header of 8.
pub const fn overhead(peer: IpAddr) -> usize {
    match peer {
        IpAddr::V4(_) => 28,
        IpAddr::V6(_) => 48,
    }
}

/// Kernels differ in what they say of datagrams that cannot be sent as one.
fn is_about_size(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INVAL | Errno::IO | Errno::MSGSIZE))
}

fn bound(local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    for force in [sockopt::set_socket_recv_buffer_size_force, sockopt::set_socket_recv_buffer_size]
    {
        if force(&socket, QUEUE_BYTES).is_ok() {
            break;
        }
    }
    socket.set_send_buffer_size(QUEUE_BYTES)?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&local.into())?;
    Ok(socket.into())
}

/// What we ask as queues of a socket: some thousands of full packets, for a burst while a worker is not running.
const QUEUE_BYTES: usize = 4 << 20;
/// An error may belong to an earlier datagram, and it may be necessary to wait.
const ATTEMPTS: usize = 3;
const SEND_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
