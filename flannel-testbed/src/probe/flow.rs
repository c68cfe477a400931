//! One TCP connection that is watched while something else happens.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use super::throughput::{STALLED, ThroughputError, connection};
use crate::endpoint::Endpoint;

/// Opens a TCP connection from `from` to `to`, over which a byte goes there and back all the time.
///
/// # Errors
///
/// [`ThroughputError`] if it cannot be opened.
///
/// # Cancel safety
///
/// Dropping the future closes what is open.
pub async fn flow(
    from: impl Into<Endpoint>,
    to: impl Into<Endpoint>,
) -> Result<Flow, ThroughputError> {
    let (from, to) = (from.into(), to.into());
    let (listener, stream) = connection(&from, &to).await?;
    let shared = Arc::new(Shared::default());
    let mut ends = JoinSet::new();
    ends.spawn_blocking(move || answer(&listener));
    let counted = Arc::clone(&shared);
    ends.spawn_blocking(move || ask(stream, &counted));
    Ok(Flow { shared, ends, from: from.name().to_owned(), to: to.name().to_owned() })
}

/// A connection that is being used. Dropping it ends it.
#[derive(Debug)]
pub struct Flow {
    shared: Arc<Shared>,
    ends: JoinSet<io::Result<()>>,
    from: String,
    to: String,
}

#[derive(Debug, Default)]
struct Shared {
    rounds: AtomicU64,
    longest_us: AtomicU64,
    stop: AtomicBool,
}

impl Flow {
    /// How often the byte was there and back.
    pub fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::Relaxed)
    }

    /// Ends it and returns how long the longest round took.
    ///
    /// # Errors
    ///
    /// [`ThroughputError::Connection`] if the connection was reset, or stalled for 5 s.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends it too.
    pub async fn stop(mut self) -> Result<Duration, ThroughputError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(end) = self.ends.join_next().await {
            let failed = |source| ThroughputError::Connection {
                step: "keep a connection",
                from: self.from.clone(),
                to: self.to.clone(),
                source,
            };
            end.map_err(io::Error::other).and_then(|end| end).map_err(failed)?;
        }
        Ok(Duration::from_micros(self.shared.longest_us.load(Ordering::Relaxed)))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn answer(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(STALLED))?;
    while !shared.stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.longest_us.fetch_max(took, Ordering::Relaxed);
        shared.rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
