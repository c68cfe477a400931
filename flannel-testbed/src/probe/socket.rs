use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket},
    sync::atomic::{AtomicU64, Ordering},
};

use flannel_netlink::Namespace;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use tokio::net::UdpSocket;

/// Opens an unconnected UDP socket inside `namespace`, for talking to an address of the family of `to`.
pub(super) fn open(namespace: &Namespace, to: IpAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    bind(namespace, SocketAddr::new(any, 0))
}

/// Binds a UDP socket inside `namespace`. It keeps what comes while this process waits for a processor.
pub(super) fn bind(namespace: &Namespace, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = namespace.run(|| StdUdpSocket::bind(address)).map_err(io::Error::other)??;
    socket.set_nonblocking(true)?;
    // Who may not have it has what the system allows.
    let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
    UdpSocket::from_std(socket)
}

/// From now on the kernel sends no fragment: a packet that is larger than the known path MTU is refused.
pub(super) fn forbid_fragments(socket: &UdpSocket) -> io::Result<()> {
    match socket.local_addr()? {
        SocketAddr::V4(_) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO)?,
        SocketAddr::V6(_) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO)?,
    }
    Ok(())
}

/// A number for [`Packet::id`](super::packet::Packet) that nobody else in this process has.
pub(super) fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    (u64::from(std::process::id()) << 32) | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// RFC 862.
pub(super) const ECHO_PORT: u16 = 7;
/// Bytes: a second of 4000 probes, for each of which the kernel counts about 1 kB.
const RECEIVE_BUFFER: usize = 4 << 20;
/// More than any UDP payload.
pub(super) const LARGEST_DATAGRAM: usize = 1 << 16;
