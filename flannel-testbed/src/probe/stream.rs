use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::Notify,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    PingError,
    packet::{PACKET_BYTES, Packet},
    socket::{ECHO_PORT, new_id, open},
    tally::{OVERDUE, StreamReport, Tally},
};
use crate::Endpoint;

/// Starts to send probes from `from` to the address `to`, `rate` per second, until the value is stopped or dropped.
///
/// The first probe goes out at once. When the process is too busy to keep the rate, the missed probes are left out and
/// not counted.
///
/// # Errors
///
/// [`PingError::Socket`]. A packet that cannot be sent later on counts as lost.
///
/// # Panics
///
/// When `rate` is zero, or outside a tokio runtime.
pub fn stream(from: impl Into<Endpoint>, to: IpAddr, rate: u32) -> Result<Stream, PingError> {
    let from = from.into();
    let socket = open(from.namespace(), to)
        .map_err(|source| PingError::Socket { from: from.name().to_owned(), source })?;
    let shared =
        Arc::new(Shared { tally: Mutex::new(Tally::new(Instant::now())), answered: Notify::new() });
    let prober = Prober {
        socket: Arc::new(socket),
        to: SocketAddr::new(to, ECHO_PORT),
        id: new_id(),
        shared: Arc::clone(&shared),
    };
    let mut sender = JoinSet::new();
    let mut receiver = JoinSet::new();
    receiver.spawn(prober.clone().receive());
    sender.spawn(prober.send(Duration::from_secs(1) / rate));
    Ok(Stream { shared, sender, receiver })
}

/// Probes that are being sent at a steady rate. Made by [`stream`].
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    sender: JoinSet<()>,
    receiver: JoinSet<()>,
}

impl Stream {
    /// The count so far.
    pub fn report(&self) -> StreamReport {
        self.shared.tally().report(Instant::now())
    }

    /// Waits until a probe is answered that was sent after this call: packets flow now.
    ///
    /// Never ends while they do not, so it belongs into a timeout.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn flowing(&self) {
        let called = Instant::now();
        loop {
            let answered = self.shared.answered.notified();
            if self.shared.tally().answered_since(called) {
                return;
            }
            answered.await;
        }
    }

    /// Sends no more, waits up to a second for the answers under way, and returns the final count.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the stream too.
    pub async fn stop(mut self) -> StreamReport {
        self.sender.shutdown().await;
        let settled = async {
            loop {
                let answered = self.shared.answered.notified();
                if self.shared.tally().all_answered() {
                    return;
                }
                answered.await;
            }
        };
        // When it ends without all answers, the rest is lost.
        let _ = timeout(OVERDUE, settled).await;
        self.receiver.shutdown().await;
        self.shared.tally().final_report()
    }
}

#[derive(Debug)]
struct Shared {
    tally: Mutex<Tally>,
    answered: Notify,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Prober {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    id: u64,
    shared: Arc<Shared>,
}

impl Prober {
    async fn send(self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut datagram = [0; PACKET_BYTES];
        for sequence in 0.. {
            ticks.tick().await;
            let question = Packet { id: self.id, sequence, seen: None };
            question.write(&mut datagram);
            self.shared.tally().sent(sequence, Instant::now());
            if let Err(error) = self.socket.send_to(&datagram, self.to).await {
                tracing::trace!(to = %self.to, %error, "a probe was not sent");
            }
        }
    }

    async fn receive(self) {
        let mut buffer = [0; PACKET_BYTES];
        loop {
            let Ok((length, _)) = self.socket.recv_from(&mut buffer).await else {
                continue;
            };
            if let Some(answer @ Packet { seen: Some(_), .. }) = Packet::read(&buffer[..length])
                && answer.id == self.id
            {
                self.shared.tally().received(answer.sequence, Instant::now());
                self.shared.answered.notify_waiters();
            }
        }
    }
}
