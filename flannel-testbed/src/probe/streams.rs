use futures::future::join_all;

use super::{PingError, Stream, StreamReport, stream};
use crate::Endpoint;

/// Starts a [`stream()`] from `from` to each address of `to`, `rate` probes per second each.
///
/// # Errors
///
/// As [`stream()`].
///
/// # Panics
///
/// As [`stream()`].
pub fn streams(
    from: impl Into<Endpoint>,
    to: impl Into<Endpoint>,
    rate: u32,
) -> Result<Streams, PingError> {
    let from = from.into();
    to.into().ips().map(|ip| stream(from.clone(), ip, rate)).collect::<Result<_, _>>().map(Streams)
}

/// The same in both directions.
///
/// # Errors
///
/// As [`stream()`].
///
/// # Panics
///
/// As [`stream()`].
pub fn streams_both_ways(
    one: impl Into<Endpoint>,
    other: impl Into<Endpoint>,
    rate: u32,
) -> Result<Streams, PingError> {
    let (one, other) = (one.into(), other.into());
    let mut both = streams(one.clone(), other.clone(), rate)?;
    both.0.extend(streams(other, one, rate)?.0);
    Ok(both)
}

/// Several streams that count as one. Made by [`streams`].
#[derive(Debug)]
pub struct Streams(Vec<Stream>);

impl FromIterator<Self> for Streams {
    fn from_iter<I: IntoIterator<Item = Self>>(several: I) -> Self {
        Self(several.into_iter().flat_map(|streams| streams.0).collect())
    }
}

impl Streams {
    /// Waits until each of them is answered a probe that was sent after this call.
    ///
    /// Never ends while one is not, so it belongs into a timeout.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn flowing(&self) {
        join_all(self.0.iter().map(Stream::flowing)).await;
    }

    /// As [`Stream::stop`]: what all of them counted, and the longest gap of any.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the streams too.
    pub async fn stop(self) -> StreamReport {
        join_all(self.0.into_iter().map(Stream::stop)).await.into_iter().sum()
    }
}
