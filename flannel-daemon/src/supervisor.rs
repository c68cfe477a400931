//! Notifies systemd, or whoever else listens on `NOTIFY_SOCKET`.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::{
    handle::{DaemonHandle, Dead},
    retry::Outage,
};

/// Pods can be served.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What the node is about, for people.
pub(crate) fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// The node is about to end.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Pings the watchdog as often as asked for, as long as the node's loop answers. Ends at once if nobody asks.
pub(crate) async fn watchdog(daemon: DaemonHandle) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut outage = Outage::default();
    loop {
        let answer = timeout(limit / PINGS, daemon.alive()).await.unwrap_or(Err(Dead::Hanging));
        match &answer {
            Ok(()) => {
                outage.end(Instant::now());
                notify(&[NotifyState::Watchdog]);
            }
            Err(dead) if outage.failed(Instant::now()) => {
                warn!(?dead, "the node's loop does not answer the watchdog");
            }
            Err(_) => {}
        }
        sleep(pause(limit, answer.is_ok())).await;
    }
}

/// Until the next ping. One that was missed is made up for at once, so that only a loop that stands for most of the limit ends the
/// process.
fn pause(limit: Duration, answered: bool) -> Duration {
    if answered { limit / PINGS } else { limit / (4 * PINGS) }
}

fn notify(states: &[NotifyState<'_>]) {
    // Without a socket this does nothing.
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot notify the supervisor");
    }
}

/// How often the loop is asked within the watchdog's limit.
const PINGS: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_ping_leaves_time_for_others() {
        for limit in [2, 10, 30, 120].map(Duration::from_secs) {
            // The loop answers, then misses one ping for as long as that may take, then answers again.
            let missed = limit / PINGS;
            let silent = pause(limit, true) + missed + pause(limit, false);
            assert!(silent <= limit * 3 / 4, "{silent:?} of {limit:?}");
            let twice = silent + missed + pause(limit, false);
            assert!(twice < limit, "{twice:?} of {limit:?}");
        }
    }
}
