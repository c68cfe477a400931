//! What the node makes of news about its own lease.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Driver;
use crate::{
    fault::{Activity, error_chain},
    lease::Lease,
    node::{
        NodeError, OnLeaseLoss,
        lease_keeper::{LeaseExpired, LeaseKeeper, LeaseOutcome},
        session::Session,
    },
};

impl Driver {
    /// Acts on what happened to our lease; returns the new one if its subnet is another.
    pub(super) fn lease_changed(
        &self,
        session: &mut Session,
        outcome: LeaseOutcome,
    ) -> Result<Option<Lease>, NodeError> {
        match outcome {
            LeaseOutcome::AcquireFailed(error) => self.fail(Activity::Acquire, &error),
            LeaseOutcome::Expired(lease) => {
                let expired = LeaseExpired { subnet: lease.subnet };
                error!(%expired, "cannot trust the lease, renewing it goes on; the data path stays");
                self.show_fault(Activity::Hold, &expired);
            }
            LeaseOutcome::RenewFailed(error) => self.fail(Activity::Renew, &error),
            LeaseOutcome::Lost(error) => {
                let subnet = session.peers.own().subnet;
                self.status.send_modify(|status| {
                    (status.lease, status.trusted_until) = (None, None);
                });
                self.succeed(Activity::Hold);
                if self.options.on_lease_loss == OnLeaseLoss::Exit {
                    return Err(NodeError::LeaseLost { subnet, source: error });
                }
                error!(%subnet, error = error_chain(&error), "lease lost, taking one anew; the data path stays");
                self.show_fault(Activity::Renew, &error);
            }
            LeaseOutcome::Acquired(lease) | LeaseOutcome::Renewed(lease) => {
                for activity in [Activity::Acquire, Activity::Hold, Activity::Renew] {
                    self.succeed(activity);
                }
                let own = session.peers.own();
                let moved = own.subnet != lease.subnet;
                if moved {
                    warn!(old = %own.subnet, new = %lease.subnet, "another subnet: pods of the old one must move");
                } else if own.attrs != lease.attrs {
                    info!(attrs = %lease.attrs, "published");
                }
                if moved {
                    // What is synced is the data path of the old subnet.
                    self.status.send_modify(|status| status.in_sync = false);
                }
                if *own != lease {
                    Arc::make_mut(&mut session.peers).set_own(lease.clone());
                    session.sync_at = Some(Instant::now());
                }
                let held = lease.clone();
                self.status.send_if_modified(|status| {
                    let changed = status.lease.as_ref() != Some(&held);
                    status.lease = Some(held);
                    changed
                });
                self.trust(&session.keeper);
                return Ok(moved.then_some(lease));
            }
        }
        Ok(None)
    }

    /// Shows until when the lease can be trusted. That it lasts longer now is no news to those who wait for changes.
    pub(super) fn trust(&self, keeper: &LeaseKeeper) {
        self.status.send_if_modified(|status| {
            status.trusted_until = keeper.trusted_until();
            false
        });
    }
}
