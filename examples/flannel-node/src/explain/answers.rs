//! Asks the other side for a sign of life, with UDP datagrams to a port that nobody is likely to listen on: whoever is there says so
//! with an error that the kernel hands to the sender. No ICMP socket and no privilege is needed.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::facts::Answer;

/// Sends datagrams from `from`, or from where the kernel likes, to `to` until something comes back or `patience` ends.
///
/// # Cancel safety
///
/// Dropping the future loses the answer only.
pub(crate) async fn ask(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Answer {
    match attempt(from, to, patience).await {
        Ok(answer) => answer,
        Err(error) => answer_of(&error),
    }
}

async fn attempt(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0)).await?;
    // Otherwise the kernel keeps to itself what routers say.
    match to {
        SocketAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
    }
    socket.connect(to).await?;
    let end = Instant::now() + patience;
    loop {
        socket.send(&[]).await?;
        let next = end.min(Instant::now() + AGAIN);
        if let Ok(came) = timeout_at(next, socket.recv(&mut [0; 1])).await {
            return came.map(|_| Answer::Alive);
        }
        if next == end {
            return Ok(Answer::Silent);
        }
    }
}

/// What an error of the socket says about the other side.
fn answer_of(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Answer::Alive,
        _ => Answer::Unreachable(error.to_string()),
    }
}

/// RFC 863. That anybody runs the discard service makes it silent, not wrong.
pub(crate) const PORT: u16 = 9;
/// How long the hosts themselves may take to answer.
pub(crate) const OF_A_HOST: Duration = Duration::from_secs(1);
/// How long a pod may take: its host looks for it for 3 s before it says that there is none.
pub(crate) const OF_A_POD: Duration = Duration::from_millis(3500);
/// A single datagram may be lost, or the answer to it held back by the other kernel's rate limit.
const AGAIN: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_a_sign_of_life_and_an_open_one_is_silent() {
        let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Duration::from_millis(50);
        assert_eq!(ask(None, address, patience).await, Answer::Silent);
        drop(listener);
        let from = Some([127, 0, 0, 2].into());
        assert_eq!(ask(from, address, Duration::from_secs(5)).await, Answer::Alive);
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_sent_from_is_told() {
        let from = Some([192, 0, 2, 1].into());
        let answer = ask(from, ([127, 0, 0, 1], PORT).into(), Duration::from_secs(5)).await;
        assert!(
            matches!(&answer, Answer::Unreachable(why) if why.contains("assign")),
            "{answer:?}"
        );
    }
}
