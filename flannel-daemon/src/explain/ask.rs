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
use rustix::{
    io::Errno,
    net::sockopt::{
        Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    },
};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::facts::Answer;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    /// Where from; `None` leaves it to the kernel.
    pub(crate) from: Option<IpAddr>,
    pub(crate) to: SocketAddr,
    /// The size of the whole IP packet, bytes, which must not be fragmented; `None` for an empty datagram.
    pub(crate) size: Option<u32>,
    pub(crate) patience: Duration,
}

impl Question {
    /// An empty datagram, and the patience that a host deserves.
    pub(crate) const fn new(to: SocketAddr) -> Self {
        Self { from: None, to, size: None, patience: OF_A_HOST }
    }

    /// Sends until something comes back or the patience ends.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the answer only.
    pub(crate) async fn ask(self) -> Answer {
        match self.attempt().await {
            Ok(answer) => answer,
            Err(error) => answer_of(&error),
        }
    }

    async fn attempt(self) -> io::Result<Answer> {
        let any: IpAddr = if self.to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((self.from.unwrap_or(any), 0)).await?;
        // Otherwise the kernel keeps to itself what routers say.
        match self.to {
            SocketAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
        }
        let mut headers = 0;
        if self.size.is_some() {
            headers = match self.to {
                SocketAddr::V4(_) => {
                    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
                    20 + 8
                }
                SocketAddr::V6(_) => {
                    set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
                    40 + 8
                }
            };
        }
        let payload = vec![0; self.size.unwrap_or(0).saturating_sub(headers) as usize];
        socket.connect(self.to).await?;
        let end = Instant::now() + self.patience;
        loop {
            socket.send(&payload).await?;
            let next = end.min(Instant::now() + AGAIN);
            if let Ok(came) = timeout_at(next, socket.recv(&mut [0; 1])).await {
                return came.map(|_| Answer::Alive);
            }
            if next == end {
                return Ok(Answer::Silent);
            }
        }
    }
}

/// What an error of the socket says about the other side.
fn answer_of(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Answer::Alive,
        _ if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => Answer::TooLarge,
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

    fn question(to: SocketAddr) -> Question {
        Question { patience: Duration::from_secs(5), ..Question::new(to) }
    }

    #[tokio::test]
    async fn a_closed_port_is_a_sign_of_life_and_an_open_one_is_silent() {
        let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Duration::from_millis(50);
        let open = Question { patience, ..question(address) };
        assert_eq!(open.ask().await, Answer::Silent);
        drop(listener);
        let from = Some([127, 0, 0, 2].into());
        assert_eq!(Question { from, ..question(address) }.ask().await, Answer::Alive);
        let large = Question { size: Some(9000), ..question(address) };
        assert_eq!(large.ask().await, Answer::Alive);
    }

    #[tokio::test]
    async fn a_packet_that_the_way_does_not_take_is_told() {
        // The loopback device takes 65536 bytes at most, and UDP a little less.
        let size = Some(65536 + 28);
        let large = Question { size, ..question(([127, 0, 0, 1], PORT).into()) };
        assert_eq!(large.ask().await, Answer::TooLarge);
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_sent_from_is_told() {
        let from = Some([203, 0, 113, 1].into());
        let answer = Question { from, ..question(([127, 0, 0, 1], PORT).into()) }.ask().await;
        assert!(
            matches!(&answer, Answer::Unreachable(why) if why.contains("assign")),
            "{answer:?}"
        );
    }
}
