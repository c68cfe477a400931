//! Follows the configuration at a bounded pace.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use tokio::time::{Instant, sleep_until};

use crate::{
    backoff::Backoff,
    config::NetworkConfig,
    store::{Store, StoreError},
};

/// The changes of a store's configuration. Dropping [`next`](Self::next) loses nothing.
pub(super) struct ConfigWatch {
    changes: BoxStream<'static, Result<NetworkConfig, StoreError>>,
    /// When to ask again after an error.
    from: Instant,
    errors: Backoff,
}

impl ConfigWatch {
    pub(super) fn new(store: &dyn Store, shortest: Duration) -> Self {
        Self {
            changes: store.watch_config(),
            from: Instant::now(),
            errors: Backoff::new(shortest, LONGEST_PAUSE),
        }
    }

    /// The next change; never resolves again if the stream has ended, which stores promise not to do.
    pub(super) async fn next(&mut self, random: u64) -> Result<NetworkConfig, StoreError> {
        if self.from > Instant::now() {
            sleep_until(self.from).await;
        }
        let Some(item) = self.changes.next().await else {
            return std::future::pending().await;
        };
        match &item {
            // These are answers.
            Ok(_) | Err(StoreError::Config { .. } | StoreError::ConfigMissing { .. }) => {
                self.errors.reset();
            }
            Err(_) => self.from = Instant::now() + self.errors.after_failure(random),
        }
        item
    }
}

/// The longest time between two looks at a watch that fails: a configuration that comes back is seen within that.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
