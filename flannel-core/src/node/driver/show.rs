//! Shows and logs what works and what does not.

use std::sync::{MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::{info, warn};

use super::Driver;
use crate::{
    fault::{Activity, Fault, Faulty, error_chain},
    node::outage_log::{Failed, OutageLog},
};

impl Driver {
    /// Shows and logs a failure that is retried.
    pub(super) fn fail(&self, activity: Activity, error: &(impl Faulty + 'static)) {
        let failed = self.outages().failed(activity, Instant::now());
        match failed {
            Failed::Begins => warn!("cannot {activity}, retrying: {}", error_chain(error)),
            Failed::GoesOn { failures, lasted } => {
                warn!(failures, ?lasted, "still cannot {activity}: {}", error_chain(error));
            }
            Failed::Quiet => {}
        }
        self.show_fault(activity, error);
    }

    pub(super) fn show_fault(&self, activity: Activity, error: &(impl Faulty + 'static)) {
        let fault = Fault::of(activity, error);
        self.status.send_if_modified(|status| status.set_faults(activity, vec![fault]));
    }

    pub(super) fn succeed(&self, activity: Activity) {
        if let Some((failures, lasted)) = self.outages().succeeded(activity, Instant::now()) {
            info!(failures, ?lasted, "can {activity} again");
        }
        self.status.send_if_modified(|status| status.set_faults(activity, Vec::new()));
    }

    pub(super) fn outages(&self) -> MutexGuard<'_, OutageLog> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
