//! What the ways to peers take, as the kernel has it.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use flannel_netlink::Namespace;
use rustix::net::sockopt;

use crate::socket::overhead;

/// What is known, and who asks.
#[derive(Debug)]
pub struct PathMtus {
    /// One of each family.
    sockets: Vec<UdpSocket>,
    paths: HashMap<SocketAddr, Path>,
}

/// What the way to a peer takes.
#[derive(Clone, Copy, Debug)]
struct Path {
    /// The largest packet inside of a datagram, bytes.
    takes: usize,
    /// When the kernel was asked, as a time since some beginning.
    asked: Duration,
}

impl PathMtus {
    /// Those from `local` addresses in `namespace`, one of each family.
    ///
    /// # Errors
    ///
    /// The kernel's, such as when it has not such an address.
    pub fn open(namespace: &Namespace, local: &[SocketAddr]) -> io::Result<Self> {
        let open = |local: &SocketAddr| UdpSocket::bind((local.ip(), 0));
        let open = || local.iter().map(open).collect::<io::Result<_>>();
        let sockets = namespace.run(open).map_err(io::Error::other)??;
        Ok(Self { sockets, paths: HashMap::new() })
    }

    /// The largest packet that a datagram to `peer` takes without being cut, bytes. The kernel is asked at most once a second for
    /// each peer.
    pub fn takes(&mut self, peer: SocketAddr, now: Duration) -> usize {
        match self.paths.get(&peer) {
            Some(path) if now.saturating_sub(path.asked) < ASK_EVERY => path.takes,
            _ => self.ask(peer, now),
        }
    }

    /// Asks the kernel again.
    pub fn ask(&mut self, peer: SocketAddr, now: Duration) -> usize {
        if self.paths.len() >= MAX_PATHS {
            self.paths.clear();
        }
        let is_alike = |socket: &&UdpSocket| {
            socket.local_addr().is_ok_and(|local| local.is_ipv4() == peer.is_ipv4())
        };
        let mtu = self.sockets.iter().find(is_alike).and_then(|socket| {
            socket.connect(peer).ok()?;
            match peer.ip() {
                IpAddr::V4(_) => sockopt::ip_mtu(socket).ok(),
                IpAddr::V6(_) => sockopt::ipv6_mtu(socket).ok(),
            }
        });
        // Where there is no way, sending says so.
        let takes =
            mtu.map_or(usize::MAX, |mtu| (mtu as usize).saturating_sub(overhead(peer.ip())));
        self.paths.insert(peer, Path { takes, asked: now });
        takes
    }
}

/// How old what we know about a path may be.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Above this many peers, what is known about paths is asked anew.
const MAX_PATHS: usize = 16 * 1024;
