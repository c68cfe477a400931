//! What systemd, or whoever else listens on `NOTIFY_SOCKET`, is told.

use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::handle::DaemonHandle;

/// Pods can be served.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What the node is about, for people.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The node is about to end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Shows signs of life as often as asked for, as long as the node's loop turns. Ends at once if nobody asks.
pub(crate) async fn watchdog(daemon: DaemonHandle) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        match daemon.alive().await {
            Ok(()) => tell(&[NotifyState::Watchdog]),
            Err(dead) => warn!(?dead, "the watchdog hears nothing from the node"),
        }
        // Half of the limit, as sd_watchdog_enabled(3) advises.
        sleep(limit / 2).await;
    }
}

fn tell(news: &[NotifyState<'_>]) {
    // Without a socket this does nothing.
    if let Err(error) = sd_notify::notify(news) {
        debug!(%error, "the supervisor was not told");
    }
}
