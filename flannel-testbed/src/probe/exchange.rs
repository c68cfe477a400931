//! Data of every kind from one namespace to a server in another and back, byte for byte.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use flannel_netlink::Namespace;
use nix::sys::socket::{
    setsockopt,
    sockopt::{BindToDevice, UdpGsoSegment},
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv,
    send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::socket::new_id;
use crate::Endpoint;

/// Who sends data, to whom, and who returns them. What it does blocks the calling thread.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Where the client is.
    pub client: Namespace,
    /// The device that the client's sockets are bound to, if any.
    pub device: Option<String>,
    /// Whom the client sends to.
    pub to: SocketAddr,
    /// Where the server is.
    pub server: Namespace,
    /// What the server listens on. It differs from `to` where somebody on the way translates that.
    pub at: SocketAddr,
}

/// Why an [`Exchange`] failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot exchange {data} with {to}: {source}")]
#[non_exhaustive]
pub struct ExchangeError {
    /// Such as `TCP` or `UDP of 8000 bytes`.
    pub data: String,
    /// Whom the client sent to.
    pub to: SocketAddr,
    /// What came instead, or the kernel's reason.
    pub source: io::Error,
}

impl Exchange {
    /// From `client` to the first address of `server`.
    ///
    /// # Panics
    ///
    /// When `server` has no address.
    pub fn new(client: impl Into<Endpoint>, server: impl Into<Endpoint>) -> Self {
        let (client, server) = (client.into(), server.into());
        let ip = server.ips().next().expect("a server has an address");
        let (at, server) = (SocketAddr::new(ip, PORT), server.namespace().clone());
        Self { client: client.namespace().clone(), device: None, to: at, server, at }
    }

    /// All kinds of data; what fails does not keep the others from being tried.
    pub fn all(&self) -> Vec<ExchangeError> {
        [self.tcp(), self.udp(), self.icmp()].into_iter().filter_map(Result::err).collect()
    }

    /// Three megabytes over one TCP connection, and as many back.
    ///
    /// # Errors
    ///
    /// [`ExchangeError`] if it cannot be opened, stalls for ten seconds, or returns other bytes.
    pub fn tcp(&self) -> Result<(), ExchangeError> {
        self.stream().map_err(|source| self.failed("TCP".into(), source))
    }

    fn stream(&self) -> io::Result<()> {
        let listener = inside(&self.server, || TcpListener::bind(self.at))?;
        set_socket_timeout(&listener, Timeout::Recv, Some(STALLED))?;
        let data = pattern(TCP_BYTES);
        thread::scope(|scope| {
            let server = scope.spawn(|| give_back(&listener));
            let returned = self.send_stream(&data);
            let served = server.join().expect("no panic");
            let failed = |error| io::Error::other(format!("{error}; the server had {served:?}"));
            same(&returned.map_err(failed)?, &data)
        })
    }

    fn send_stream(&self, data: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.socket(SocketType::STREAM, None, STALLED)?;
        connect(&socket, &self.to)?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(data)?;
        stream.shutdown(Shutdown::Write)?;
        let mut returned = Vec::new();
        stream.read_to_end(&mut returned)?;
        Ok(returned)
    }

    /// UDP datagrams of many sizes, and one send of several (`UDP_SEGMENT`).
    ///
    /// # Errors
    ///
    /// [`ExchangeError`] for the first size that does not come back.
    pub fn udp(&self) -> Result<(), ExchangeError> {
        let failed = |source| self.failed("UDP".into(), source);
        let server = inside(&self.server, || UdpSocket::bind(self.at)).map_err(failed)?;
        server.set_read_timeout(Some(LOST)).map_err(failed)?;
        let client = self.socket(SocketType::DGRAM, None, LOST).map_err(failed)?;
        connect(&client, &self.to).map_err(|error| failed(error.into()))?;
        let client = UdpSocket::from(client);
        for (size, segment) in UDP_SIZES {
            let data = || format!("UDP of {size} bytes, {segment} each");
            self.retried(data, || datagrams(&client, &server, size, segment))?;
        }
        Ok(())
    }

    /// ICMP echo requests of many sizes, which the kernel of the address answers.
    ///
    /// # Errors
    ///
    /// [`ExchangeError`] for the first size that is not answered.
    pub fn icmp(&self) -> Result<(), ExchangeError> {
        let protocol = if self.to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        let open = || {
            let socket = self.socket(SocketType::RAW, Some(protocol), LOST)?;
            connect(&socket, &SocketAddr::new(self.to.ip(), 0))?;
            io::Result::Ok(socket)
        };
        let socket = open().map_err(|source| self.failed("ICMP".into(), source))?;
        for size in ICMP_SIZES {
            self.retried(|| format!("ICMP of {size} bytes"), || echo(&socket, self.to.ip(), size))?;
        }
        Ok(())
    }

    fn socket(
        &self,
        kind: SocketType,
        protocol: Option<Protocol>,
        patience: Duration,
    ) -> io::Result<OwnedFd> {
        let family = if self.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let open = || Ok(socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?);
        let socket = inside(&self.client, open)?;
        if let Some(device) = &self.device {
            setsockopt(&socket, BindToDevice, &OsString::from(device))?;
        }
        for way in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, way, Some(patience))?;
        }
        Ok(socket)
    }

    /// A path that is found to take less costs a packet.
    fn retried(
        &self,
        data: impl Fn() -> String,
        mut attempt: impl FnMut() -> io::Result<()>,
    ) -> Result<(), ExchangeError> {
        // One that a signal ends, such as that of a child's end, is none: sockets with a timeout do not go on after that.
        let attempt = || loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        };
        let mut results = std::iter::repeat_with(attempt).take(ATTEMPTS);
        let mut result = results.next().expect("an attempt");
        while let (Err(_), Some(next)) = (&result, results.next()) {
            result = next;
        }
        result.map_err(|source| self.failed(data(), source))
    }

    fn failed(&self, data: String, source: io::Error) -> ExchangeError {
        ExchangeError { data, to: self.to, source }
    }
}

fn inside<T: Send>(
    namespace: &Namespace,
    open: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    namespace.run(open).map_err(io::Error::other)?
}

fn give_back(listener: &TcpListener) -> io::Result<usize> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(STALLED))?;
    stream.set_write_timeout(Some(STALLED))?;
    let mut data = Vec::new();
    stream.read_to_end(&mut data)?;
    stream.write_all(&data)?;
    Ok(data.len())
}

/// One send of `size` bytes, as datagrams of `segment` bytes each unless that is 0, each of which comes back.
fn datagrams(
    client: &UdpSocket,
    server: &UdpSocket,
    size: usize,
    segment: usize,
) -> io::Result<()> {
    setsockopt(client, UdpGsoSegment, &(segment as i32))?;
    let mut buffer = vec![0; 1 << 16];
    // What an earlier attempt left.
    for socket in [client, server] {
        socket.set_nonblocking(true)?;
        while socket.recv(&mut buffer).is_ok() {}
        socket.set_nonblocking(false)?;
    }
    let data = pattern(size);
    client.send(&data)?;
    let parts = if segment == 0 { vec![&data[..]] } else { data.chunks(segment).collect() };
    for part in parts {
        let (len, from) = server.recv_from(&mut buffer)?;
        same(&buffer[..len], part)?;
        server.send_to(&buffer[..len], from)?;
        let len = client.recv(&mut buffer)?;
        same(&buffer[..len], part)?;
    }
    Ok(())
}

/// One echo request with `size` bytes, and its answer.
fn echo(socket: &OwnedFd, to: IpAddr, size: usize) -> io::Result<()> {
    let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
    let mut message = vec![request, 0, 0, 0];
    // The identifier and the number.
    message.extend((new_id() as u32).to_be_bytes());
    message.extend(pattern(size));
    if to.is_ipv4() {
        let sum = message.chunks(2).fold(0_u32, |sum, word| {
            sum + (u32::from(word[0]) << 8) + u32::from(*word.get(1).unwrap_or(&0))
        });
        let sum = (sum >> 16) + (sum & 0xffff);
        let checksum = !(((sum >> 16) + sum) as u16);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    send(socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (len, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let header = if to.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        let answer = buffer[..len].get(header..).unwrap_or_default();
        if answer.first() == Some(&reply) && answer.get(4..8) == Some(&message[4..8]) {
            return same(&answer[8..], &message[8..]);
        }
    }
}

fn same(returned: &[u8], sent: &[u8]) -> io::Result<()> {
    if returned == sent {
        return Ok(());
    }
    let at = returned.iter().zip(sent).take_while(|(a, b)| a == b).count();
    let (returned, sent) = (returned.len(), sent.len());
    Err(io::Error::other(format!("{returned} bytes instead of {sent}, others after {at}")))
}

/// Bytes that repeat after a prime number of them, which no segment is a multiple of.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

const PORT: u16 = 7000;
const TCP_BYTES: usize = 3 << 20;
/// With the sizes of the parts, or 0: around what fits into one packet of a tunnel, and what becomes fragments.
const UDP_SIZES: [(usize, usize); 11] = [
    (0, 0),
    (1, 0),
    (64, 0),
    (1400, 0),
    (1444, 0),
    (1445, 0),
    (1472, 0),
    (1473, 0),
    (8000, 0),
    (65_000, 0),
    (3500, 1000),
];
const ICMP_SIZES: [usize; 4] = [56, 1444, 8000, 60_000];
const ATTEMPTS: usize = 2;
/// How long a packet is waited for.
const LOST: Duration = Duration::from_millis(500);
/// How long a stalled connection is waited for.
const STALLED: Duration = Duration::from_secs(10);
