use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use flannel_netlink::Namespace;
use tokio::{net::UdpSocket, task::JoinSet};

use super::{
    packet::Packet,
    socket::{ECHO_PORT, LARGEST_DATAGRAM, bind},
};

/// Starts a task that answers the probes which reach `namespace`, on any of its addresses.
pub(crate) fn serve(namespace: &Namespace, tasks: &mut JoinSet<()>) -> io::Result<()> {
    // The IPv6 socket takes IPv4 too, unless the kernel has no IPv6.
    let socket = bind(namespace, SocketAddr::from((Ipv6Addr::UNSPECIFIED, ECHO_PORT)))
        .or_else(|_| bind(namespace, SocketAddr::from((Ipv4Addr::UNSPECIFIED, ECHO_PORT))))?;
    tasks.spawn(answer(socket));
    Ok(())
}

async fn answer(socket: UdpSocket) {
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    loop {
        // An error here is a report about an earlier answer, such as an ICMP message; the next datagram is unaffected.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let datagram = &mut buffer[..length];
        let Some(question @ Packet { seen: None, .. }) = Packet::read(datagram) else {
            continue;
        };
        let answer = Packet {
            seen: Some(SocketAddr::new(from.ip().to_canonical(), from.port())),
            ..question
        };
        answer.write(datagram);
        if let Err(error) = socket.send_to(datagram, from).await {
            tracing::trace!(%from, %error, "a probe could not be answered");
        }
    }
}
