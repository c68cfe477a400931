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

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::testing::MockStore;

    #[tokio::test(start_paused = true)]
    async fn it_pauses_longer_after_each_error_and_not_after_an_answer() {
        let away = || StoreError::Unavailable { operation: "read".into(), source: "down".into() };
        let missing = || StoreError::ConfigMissing { place: "/net/config".into() };
        let config = || r#"{"Network":"10.3.0.0/16"}"#.parse::<NetworkConfig>().unwrap();
        let mut store = MockStore::new();
        store.expect_watch_config().returning(move || {
            let away = || Err(away());
            let items = [away(), away(), away(), away(), Ok(config()), Ok(config()), away()];
            stream::iter(items.into_iter().chain([Err(missing()), away(), away()])).boxed()
        });
        let mut watch = ConfigWatch::new(&store, Duration::from_millis(200));
        let mut waits = Vec::new();
        for _ in 0..10 {
            let asked = Instant::now();
            // The largest number leaves waits as long as they may be.
            let _ = watch.next(u64::MAX).await;
            waits.push(asked.elapsed().as_millis());
        }
        let [after_errors, after_answers] = [[0, 200, 400, 800, 1000], [0, 0, 200, 0, 200]];
        assert_eq!(waits, [after_errors, after_answers].concat());
    }
}
