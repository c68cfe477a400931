//! What is sent from the first node to the second.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use flannel_core::Family;
use flannel_netlink::Namespace;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Duration, timeout},
};

use super::{
    SelfTestError,
    pair::{Pair, outside},
};

/// A TCP connection, whose packets the programs have to carry both ways.
pub(super) async fn tcp(pair: &Pair, family: Family) -> Result<(), SelfTestError> {
    let before = pair.carried();
    let failed = failure("TCP", family);
    let source = exchange(pair, family, None).await.map_err(|error| failed(&error))?;
    if source != pair.tunnel(0, family) {
        return Err(failed(&format!("it came from {source}")));
    }
    let (carried, expected) = (pair.carried() - before, (2 * TCP_BYTES / LARGEST_SEGMENT) as u64);
    if carried < expected {
        return Err(failed(&format!("programs carried {carried} packets of at least {expected}")));
    }
    Ok(())
}

/// The same from an address that is translated on the way.
pub(super) async fn translated(pair: &Pair, family: Family) -> Result<(), SelfTestError> {
    let failed = failure("TCP with a translated source", family);
    let source = exchange(pair, family, Some(outside(family))).await;
    match source.map_err(|error| failed(&error))? {
        source if source == pair.tunnel(0, family) => Ok(()),
        source => Err(failed(&format!("it came from {source}"))),
    }
}

/// Datagrams that the kernel is given as one.
pub(super) async fn udp(pair: &Pair, family: Family) -> Result<(), SelfTestError> {
    let failed = failure("UDP in segments", family);
    datagrams(pair, family).await.map_err(|error| failed(&error))
}

fn failure(flow: &'static str, family: Family) -> impl Fn(&dyn ToString) -> SelfTestError {
    move |reason| SelfTestError::Flow { flow, family, reason: reason.to_string() }
}

/// Sends bytes over TCP and gets as many back. Returns where the connection came from.
async fn exchange(pair: &Pair, family: Family, from: Option<IpAddr>) -> io::Result<IpAddr> {
    let (client, server) = pair.namespaces();
    let to = SocketAddr::new(pair.tunnel(1, family), PORT);
    let listener = socket(server, to, Type::STREAM)?;
    listener.set_reuse_address(true)?;
    listener.bind(&to.into())?;
    listener.listen(1)?;
    let listener = TcpListener::from_std(listener.into())?;
    let socket = socket(client, to, Type::STREAM)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    let socket = TcpSocket::from_std_stream(socket.into());
    let meets = async { tokio::try_join!(socket.connect(to), listener.accept()) };
    let (mut stream, (mut served, source)) = within("no connection", meets).await?;
    within("no data arrived", pass(&mut stream, &mut served)).await?;
    within("no data came back", pass(&mut served, &mut stream)).await?;
    Ok(source.ip())
}

async fn pass(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let data: Vec<u8> = (0..TCP_BYTES).map(|n| (n / 251 + n) as u8).collect();
    let mut arrived = vec![0; data.len()];
    tokio::try_join!(from.write_all(&data), to.read_exact(&mut arrived))?;
    if arrived == data { Ok(()) } else { Err(io::Error::other("other data arrived")) }
}

async fn datagrams(pair: &Pair, family: Family) -> io::Result<()> {
    let (client, server) = pair.namespaces();
    let to = SocketAddr::new(pair.tunnel(1, family), PORT);
    let server = socket(server, to, Type::DGRAM)?;
    server.bind(&to.into())?;
    let server = tokio::net::UdpSocket::from_std(UdpSocket::from(server))?;
    let client = socket(client, to, Type::DGRAM)?;
    client.connect(&to.into())?;
    setsockopt(&client, UdpGsoSegment, &(DATAGRAM as i32))?;
    let data: Vec<u8> = (0..DATAGRAM * DATAGRAMS).map(|n| (n / 251 + n) as u8).collect();
    client.send(&data)?;
    let (mut buffer, mut missing): (_, Vec<_>) =
        ([0; DATAGRAM + 1], data.chunks(DATAGRAM).collect());
    while !missing.is_empty() {
        let what = || format!("{} of {DATAGRAMS} datagrams did not arrive", missing.len());
        let len = timeout(PATIENCE, server.recv(&mut buffer)).await;
        let len = len.map_err(|_| io::Error::other(what()))??;
        let Some(at) = missing.iter().position(|it| *it == &buffer[..len]) else {
            return Err(io::Error::other("a datagram with other data arrived"));
        };
        missing.swap_remove(at);
    }
    Ok(())
}

async fn within<T>(
    otherwise: &'static str,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout(PATIENCE, work).await.map_err(|_| io::Error::other(otherwise))?
}

fn socket(namespace: &Namespace, to: SocketAddr, kind: Type) -> io::Result<Socket> {
    let open = || Socket::new(Domain::for_address(to), kind, None);
    let socket = namespace.run(open).map_err(io::Error::other)??;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What one step may take: a lost packet of a handshake is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Several times what the kernel puts into one packet, which is at most 64 KiB.
const TCP_BYTES: usize = 256 << 10;
/// What a packet of 1500 bytes carries at most.
const LARGEST_SEGMENT: usize = 1460;
const DATAGRAM: usize = 1000;
const DATAGRAMS: usize = 10;
const PORT: u16 = 7000;
