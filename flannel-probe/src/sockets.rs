//! The sockets: one for each of our own addresses that peers are probed from.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
};

use flannel_netlink::Namespace;
use rustix::{
    io::Errno,
    net::{
        RecvFlags, SendFlags, recvfrom, sendto,
        sockopt::{
            Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
        },
    },
};
use tokio::{io::Interest, net::UdpSocket};

use crate::{
    path::{Checksum, Layer},
    schedule::headers,
    targets::End,
    wire::{Datagram, HEADER, Kind},
};

/// All sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    namespace: Namespace,
    port: u16,
    open: BTreeMap<(Layer, IpAddr), UdpSocket>,
    /// What cannot be opened, and why.
    faults: BTreeMap<(Layer, IpAddr), String>,
}

/// What came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Received {
    pub(crate) layer: Layer,
    /// At which of our addresses.
    pub(crate) at: IpAddr,
    pub(crate) from: SocketAddr,
    /// `None` if it is nothing of ours.
    pub(crate) datagram: Option<Datagram>,
}

/// Why a probe was not sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NotSent {
    /// It is larger than what the device takes.
    TooLarge,
    /// As good as lost.
    Failed,
}

impl Sockets {
    pub(crate) fn new(namespace: &Namespace, port: u16) -> Self {
        let (open, faults) = Default::default();
        Self { namespace: namespace.clone(), port, open, faults }
    }

    /// Has a socket at each address of these ends, as far as that can be. What is open and wanted stays open.
    pub(crate) fn follow(&mut self, ends: &[End]) {
        let wanted: Vec<_> = ends
            .iter()
            .flat_map(|end| {
                let overlay = end.overlay.map(|address| (Layer::Overlay, address));
                [(Layer::Underlay, end.local)].into_iter().chain(overlay)
            })
            .collect();
        self.open.retain(|key, _| wanted.contains(key));
        self.faults.clear();
        for key in wanted {
            if self.open.contains_key(&key) {
                continue;
            }
            match self.bind(SocketAddr::new(key.1, self.port)) {
                Ok(socket) => drop(self.open.insert(key, socket)),
                Err(error) => drop(self.faults.insert(key, error.to_string())),
            }
        }
    }

    /// What keeps us from asking and answering, in sentences.
    pub(crate) fn faults(&self) -> impl Iterator<Item = String> {
        self.faults.iter().map(|((_, address), error)| {
            format!("cannot use UDP port {} of {address}: {error}", self.port)
        })
    }

    /// Sends a probe from `local`.
    pub(crate) fn send_request(
        &self,
        layer: Layer,
        local: IpAddr,
        to: IpAddr,
        probe: &Datagram,
        checksum: Checksum,
    ) -> Result<(), NotSent> {
        let socket = self.open.get(&(layer, local)).ok_or(NotSent::Failed)?;
        let mut bytes = probe.header().to_vec();
        let length = usize::from(probe.size).saturating_sub(headers(&to) as usize);
        bytes.resize(length.max(HEADER), 0);
        match send(socket, &bytes, SocketAddr::new(to, self.port), checksum) {
            Ok(()) => Ok(()),
            Err(Errno::MSGSIZE) => Err(NotSent::TooLarge),
            Err(_) => Err(NotSent::Failed),
        }
    }

    /// Sends the answer to a probe. Its checksum is computed: our own hardware is not what the peer wants to know about.
    pub(crate) fn send_reply(&self, received: &Received, probe: &Datagram) -> bool {
        let Some(socket) = self.open.get(&(received.layer, received.at)) else { return false };
        let reply = Datagram { kind: Kind::Reply, ..*probe };
        send(socket, &reply.header(), received.from, Checksum::Computed).is_ok()
    }

    /// Waits for the next datagram.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(crate) async fn next(&self) -> Received {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Received> {
        for ((layer, at), socket) in &self.open {
            while socket.poll_recv_ready(context).is_ready() {
                let mut bytes = [0; HEADER];
                let received = socket.try_io(Interest::READABLE, || {
                    // The length is that of the datagram, of which only the header is read.
                    Ok(recvfrom(socket, &mut bytes, RecvFlags::TRUNC)?)
                });
                // Errors are those of earlier datagrams, or say that nothing came: then the next look registers again.
                let Ok((read, length, Some(from))) = received else { continue };
                let Ok(from) = SocketAddr::try_from(from) else { continue };
                let datagram = Datagram::parse(&bytes[..read], length, headers(at) as usize);
                return Poll::Ready(Received { layer: *layer, at: *at, from, datagram });
            }
        }
        Poll::Pending
    }

    fn bind(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let bind = || -> io::Result<_> {
            let socket = std::net::UdpSocket::bind(local)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = self.namespace.run(bind).map_err(io::Error::other)??;
        // Nobody on the path may cut it, and what the kernel believes to know of the path does not count.
        match local {
            SocketAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
            SocketAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        UdpSocket::from_std(socket)
    }
}

/// Sends one datagram.
///
/// The kernel leaves the checksum of a datagram to the device if it is sent in one piece and the device offers to compute it. Of
/// one that is sent in two pieces it computes the checksum itself.
fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr, checksum: Checksum) -> Result<(), Errno> {
    let now = SendFlags::DONTWAIT;
    match checksum {
        Checksum::Offloaded => sendto(socket, bytes, now, &to)?,
        Checksum::Computed => {
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            sendto(socket, first, now | SendFlags::MORE, &to)?;
            sendto(socket, rest, now, &to)?
        }
    };
    Ok(())
}
