use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{Monitor, Namespace, Notice, OpenError, Subject, Topic, state::Object};

/// Resolves when [`select_interface`](super::select_interface) may have another answer.
#[derive(Debug)]
pub struct InterfaceChanges {
    monitor: Monitor,
    /// Something has changed since the last answer.
    pending: bool,
    /// The earliest moment for the next one.
    quiet_until: Instant,
}

impl InterfaceChanges {
    /// Listens in `namespace` from now on. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a socket cannot be made there.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        let monitor = Monitor::open_for(namespace, &TOPICS)?;
        Ok(Self { monitor, pending: false, quiet_until: Instant::now() })
    }

    /// Resolves after devices, addresses or default routes have changed: at once, and then not again for 100 ms, so that a machine
    /// that makes and removes devices all the time costs ten looks per second.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call resolves instead.
    pub async fn next(&mut self) {
        while !self.pending {
            self.pending = concerns(self.monitor.next().await.as_ref().unwrap_or(&Notice::Lost));
        }
        // What comes meanwhile is told with it.
        while let Ok(notice) = timeout_at(self.quiet_until, self.monitor.next()).await {
            if notice.is_err() {
                sleep_until(self.quiet_until).await;
            }
        }
        (self.pending, self.quiet_until) = (false, Instant::now() + QUIET);
    }
}

/// Whether the answer may be another one now.
fn concerns(notice: &Notice) -> bool {
    match notice {
        Notice::Lost => true,
        Notice::Added { subject, .. } | Notice::Removed { subject, .. } => match subject {
            Subject::Link(_) | Subject::Object(Object::Address(_)) => true,
            Subject::Object(Object::Route(route)) => route.destination.prefix() == 0,
            Subject::Netconf(_)
            | Subject::Object(_)
            | Subject::Other(_)
            | Subject::Rule
            | Subject::TrafficControl(_) => false,
        },
    }
}

/// All that [`concerns`] takes. Ten thousand routes of peers are none of it.
const TOPICS: [Topic; 3] = [Topic::Addresses, Topic::DefaultRoutes, Topic::Links];

const QUIET: Duration = Duration::from_millis(100);
