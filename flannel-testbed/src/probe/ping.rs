use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::libc;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    packet::{PACKET_BYTES, Packet},
    socket::{ECHO_PORT, LARGEST_DATAGRAM, forbid_fragments, new_id, open},
};
use crate::Endpoint;

/// How to [`ping`]: size, fragments and patience.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ping {
    size: usize,
    fragments: bool,
    timeout: Duration,
}

impl Ping {
    /// The size of the whole IP packet in bytes, headers counted. 84 unless set, as with `ping(8)`.
    ///
    /// Below 88 (IPv6) or 68 (IPv4) it has no effect: the probe does not get smaller than that.
    #[must_use]
    pub const fn size(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }

    /// Sets "don't fragment": a packet that is larger than the path MTU is [`PingError::TooBig`] or lost.
    #[must_use]
    pub const fn unfragmented(mut self) -> Self {
        self.fragments = false;
        self
    }

    /// How long to wait for the answer. 1 s unless set.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn payload(&self, to: IpAddr) -> usize {
        let headers = match to {
            IpAddr::V4(_) => 20 + 8,
            IpAddr::V6(_) => 40 + 8,
        };
        self.size.saturating_sub(headers).clamp(PACKET_BYTES, LARGEST_DATAGRAM)
    }
}

impl Default for Ping {
    fn default() -> Self {
        Self { size: 84, fragments: true, timeout: Duration::from_secs(1) }
    }
}

/// An answered [`ping`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Pong {
    /// From sending the question to taking the answer, the scheduling of this process counted in.
    pub round_trip: Duration,
    /// The source of the question as the other side saw it. Another address than the sender's means that somebody on
    /// the way translated it.
    pub seen_as: IpAddr,
}

/// Sends one probe from `from` to the address `to` and waits for its answer.
///
/// # Errors
///
/// [`PingError::Lost`] when no answer came in time; the other variants when the kernel did not even send it.
///
/// # Cancel safety
///
/// Dropping the future loses the answer only.
pub async fn ping(from: impl Into<Endpoint>, to: IpAddr, how: Ping) -> Result<Pong, PingError> {
    let from = from.into();
    let failed = |source| PingError::Socket { from: from.name().to_owned(), source };
    let socket = open(from.namespace(), to).map_err(failed)?;
    if !how.fragments {
        forbid_fragments(&socket).map_err(failed)?;
    }
    let mut datagram = vec![0; how.payload(to)];
    let question = Packet { id: new_id(), sequence: 0, seen: None };
    question.write(&mut datagram);
    let sent_at = Instant::now();
    socket
        .send_to(&datagram, SocketAddr::new(to, ECHO_PORT))
        .await
        .map_err(|source| not_sent(from.name(), to, how.size, source))?;
    let seen = match timeout_at(sent_at + how.timeout, answer_to(&socket, &question)).await {
        Ok(answered) => answered.map_err(failed)?,
        Err(_) => {
            return Err(PingError::Lost { from: from.name().to_owned(), to, timeout: how.timeout });
        }
    };
    Ok(Pong { round_trip: sent_at.elapsed(), seen_as: seen.ip() })
}

/// Why a [`ping`] was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// No answer came in time.
    #[error("no answer to a ping from {from} to {to} within {timeout:?}")]
    Lost {
        /// Who asked.
        from: String,
        /// Whom.
        to: IpAddr,
        /// How long it waited.
        timeout: Duration,
    },
    /// The sender's kernel has no way to the address.
    #[error("cannot ping {to} from {from}")]
    NotSent {
        /// Who asked.
        from: String,
        /// Whom.
        to: IpAddr,
        /// The kernel's reason, such as "network is unreachable".
        source: io::Error,
    },
    /// The probe could not be prepared.
    #[error("cannot open a socket for probes in the namespace of {from}")]
    Socket {
        /// Who was to ask.
        from: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The packet is larger than the path MTU that the sender's kernel knows, and must not be fragmented.
    #[error("a packet of {size} bytes from {from} to {to} is larger than the path MTU")]
    TooBig {
        /// Who asked.
        from: String,
        /// Whom.
        to: IpAddr,
        /// The size of the IP packet, bytes.
        size: usize,
    },
}

/// Waits for the answer to `question` and returns who the other side thinks we are.
async fn answer_to(socket: &UdpSocket, question: &Packet) -> io::Result<SocketAddr> {
    let mut buffer = [0; PACKET_BYTES];
    loop {
        let (length, _) = socket.recv_from(&mut buffer).await?;
        if let Some(Packet { id, sequence, seen: Some(seen) }) = Packet::read(&buffer[..length])
            && (id, sequence) == (question.id, question.sequence)
        {
            return Ok(seen);
        }
    }
}

fn not_sent(from: &str, to: IpAddr, size: usize, source: io::Error) -> PingError {
    let from = from.to_owned();
    if source.raw_os_error() == Some(libc::EMSGSIZE) {
        return PingError::TooBig { from, to, size };
    }
    PingError::NotSent { from, to, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_counts_the_headers() {
        let how = Ping::default().size(1500);
        assert_eq!(how.payload("10.0.0.1".parse().unwrap()), 1472);
        assert_eq!(how.payload("fd00::1".parse().unwrap()), 1452);
        assert_eq!(how.size(10).payload("10.0.0.1".parse().unwrap()), PACKET_BYTES);
    }
}
