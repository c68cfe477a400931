//! How long tests wait for what is to become so.

use std::{panic::Location, time::Duration};

use tokio::time::{sleep, timeout};

/// Waits for what comes soon: for a minute, because other tests run beside. What has to be faster than that is measured, not tested.
///
/// # Panics
///
/// If it has not come by then, with the place of the caller.
#[track_caller]
pub fn soon<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let done = timeout(PATIENCE, work).await;
        done.unwrap_or_else(|_| panic!("{caller}: not within {PATIENCE:?}"))
    }
}

/// Waits until `condition` is met, as [`soon`] does.
///
/// # Panics
///
/// As [`soon`].
#[track_caller]
pub fn eventually(mut condition: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    soon(async move {
        while !condition().await {
            sleep(POLL).await;
        }
    })
}

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
