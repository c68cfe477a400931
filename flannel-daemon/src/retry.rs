//! Retries what is needed before there can be a node.

use std::{error::Error, time::Duration};

use flannel_core::StoreError;
use flannel_store::RegistryError;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{error::chain, handle::DaemonHandle};

/// Attempts at one thing. The log gets a line when they begin to fail, one a minute meanwhile, and one when they succeed.
#[derive(Debug)]
pub(crate) struct Retry<'a> {
    what: &'static str,
    daemon: &'a DaemonHandle,
    outage: Outage,
}

/// A time without success.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    began: Option<Instant>,
    logged: Option<Instant>,
}

impl<'a> Retry<'a> {
    /// `what` follows "cannot" in messages.
    pub(crate) fn new(what: &'static str, daemon: &'a DaemonHandle) -> Self {
        Self { what, daemon, outage: Outage::default() }
    }

    /// The value; `None` if it is to be tried again after a pause.
    ///
    /// # Errors
    ///
    /// A failure that waiting does not help.
    pub(crate) fn outcome<T, E: Error + Send + Sync + 'static>(
        &mut self,
        result: Result<T, E>,
        is_retryable: impl FnOnce(&E) -> bool,
    ) -> Result<Option<T>, E> {
        let (what, now) = (self.what, Instant::now());
        match result {
            Ok(value) => {
                if let Some(length) = self.outage.end(now) {
                    info!("can {what} after {} s", length.as_secs());
                }
                self.daemon.lack(what, None, false);
                Ok(Some(value))
            }
            Err(error) if !is_retryable(&error) => Err(error),
            Err(error) => {
                let text = chain(&error);
                if self.outage.failed(now) {
                    warn!("cannot {what}, retrying: {text}");
                }
                self.daemon.lack(what, Some(text), store_is_away(&error));
                Ok(None)
            }
        }
    }
}

fn store_is_away(error: &(dyn Error + 'static)) -> bool {
    let registry = error.downcast_ref();
    matches!(error.downcast_ref(), Some(StoreError::Unavailable { .. }))
        || matches!(registry, Some(RegistryError::Unavailable { .. }))
}

impl Outage {
    /// Whether a failure now is logged.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        self.began.get_or_insert(now);
        let is_due = self.logged.is_none_or(|last| now.saturating_duration_since(last) >= REPEAT);
        if is_due {
            self.logged = Some(now);
        }
        is_due
    }

    /// How long it lasted, if there was one.
    pub(crate) fn end(&mut self, now: Instant) -> Option<Duration> {
        self.logged = None;
        self.began.take().map(|began| now.saturating_duration_since(began))
    }
}

/// Between attempts to get what is needed before there is a node: 1 s as flannel's.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);
/// Between two lines about one outage.
const REPEAT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_when_it_begins_once_a_minute_and_when_it_ends() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        assert_eq!(outage.end(at(0)), None);
        let logged: Vec<_> = (0..150).filter(|second| outage.failed(at(*second))).collect();
        assert_eq!(logged, [0, 60, 120]);
        assert_eq!(outage.end(at(150)), Some(Duration::from_secs(150)));
        assert!(outage.failed(at(151)), "another outage");
    }
}
