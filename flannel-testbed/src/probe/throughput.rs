use std::{
    fmt, io,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use flannel_netlink::Namespace;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use tokio::{task::spawn_blocking, time::Instant};

use crate::Endpoint;

/// Sends as much as goes over one TCP connection from `from` to `to` for `duration`.
///
/// The addresses are the first that both have a family for, IPv4 first, also that of the sender. Both ends run on threads of this
/// process.
///
/// # Errors
///
/// [`ThroughputError`], with the step that failed.
///
/// # Cancel safety
///
/// After dropping the future the threads go on until `duration` is over.
pub async fn tcp_throughput(
    from: impl Into<Endpoint>,
    to: impl Into<Endpoint>,
    duration: Duration,
) -> Result<Throughput, ThroughputError> {
    let (from, to) = (from.into(), to.into());
    let (listener, sender) = connection(&from, &to).await?;
    let failed = |step| failed(step, &from, &to);
    let receiver = blocking(move || take(&listener, duration));
    let sender = blocking(move || send(sender, duration));
    let (received, sent) = tokio::join!(receiver, sender);
    sent.map_err(failed("send"))?;
    received.map_err(failed("receive"))
}

/// What went over a connection, counted by the receiver.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Throughput {
    /// Payload bytes.
    pub bytes: u64,
    /// From the connection's start to its end.
    pub elapsed: Duration,
}

impl Throughput {
    /// Payload bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} Gbit/s", self.bits_per_second() / 1e9)
    }
}

/// Why a throughput could not be measured, or a connection not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThroughputError {
    /// A step of the connection failed.
    #[error("cannot {step} over TCP from {from} to {to}")]
    Connection {
        /// `listen`, `connect`, `send`, `receive` or `keep a connection`.
        step: &'static str,
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// One has IPv4 only, the other IPv6 only.
    #[error("{from} and {to} have no address family in common")]
    NoSharedFamily {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
    },
}

/// A listener at `to`, and a connection to it from `from`, by this very address: a host has several.
pub(super) async fn connection(
    from: &Endpoint,
    to: &Endpoint,
) -> Result<(TcpListener, TcpStream), ThroughputError> {
    let pair = |ip: IpAddr| Some((from.ips().find(|own| own.is_ipv4() == ip.is_ipv4())?, ip));
    let Some((own, ip)) = to.ips().find_map(pair) else {
        return Err(ThroughputError::NoSharedFamily {
            from: from.name().to_owned(),
            to: to.name().to_owned(),
        });
    };
    let failed = |step| failed(step, from, to);
    let listen = move || TcpListener::bind(SocketAddr::new(ip, 0));
    let listener = inside(to.namespace(), listen).await.map_err(failed("listen"))?;
    let address = listener.local_addr().map_err(failed("listen"))?;
    let connect = move || connect(own, address);
    let sender = inside(from.namespace(), connect).await.map_err(failed("connect"))?;
    Ok((listener, sender))
}

fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_TIMEOUT))?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

fn failed(
    step: &'static str,
    from: &Endpoint,
    to: &Endpoint,
) -> impl FnOnce(io::Error) -> ThroughputError {
    let (from, to) = (from.name().to_owned(), to.name().to_owned());
    move |source| ThroughputError::Connection { step, from, to, source }
}

fn send(mut stream: TcpStream, duration: Duration) -> io::Result<()> {
    let chunk = vec![0; CHUNK_BYTES];
    let end = Instant::now() + duration;
    stream.set_write_timeout(Some(STALLED))?;
    while Instant::now() < end {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn take(listener: &TcpListener, duration: Duration) -> io::Result<Throughput> {
    // The sender has a connection, but what it sent last for it may be lost, and all that it sends after that.
    set_socket_timeout(listener, Timeout::Recv, Some(duration + STALLED))?;
    let (mut stream, _) = listener.accept()?;
    let started = Instant::now();
    stream.set_read_timeout(Some(duration + STALLED))?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => bytes += length as u64,
        }
    }
    Ok(Throughput { bytes, elapsed: started.elapsed() })
}

async fn inside<T: Send + 'static>(
    namespace: &Namespace,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = namespace.clone();
    blocking(move || namespace.run(f).map_err(io::Error::other)?).await
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(f).await.map_err(io::Error::other)?
}

/// 256 KiB: large enough that system calls do not count.
const CHUNK_BYTES: usize = 256 << 10;
/// A first SYN may be lost once and is sent again after 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection over which nothing moves for this long has failed.
pub(super) const STALLED: Duration = Duration::from_secs(5);
