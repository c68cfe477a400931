//! What a node knows and has to do while it runs.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{
    config_watch::ConfigWatch, lease_keeper::LeaseKeeper, operation::Operation, pings::Pings,
    removals::PendingRemovals,
};
use crate::{
    backoff::Backoff, config::NetworkConfig, lease::LeaseEvent, peers::Peers, report::Transport,
    store::StoreError, subnet::Subnet,
};

/// What the loop works on while the node holds one subnet.
pub(super) struct Session {
    pub(super) keeper: LeaseKeeper,
    pub(super) pings: Pings,
    pub(super) peers: Arc<Peers>,
    /// Whether the store has said who the peers are. Until then they are unknown, and unknown is never synced.
    pub(super) known: bool,
    pub(super) removals: PendingRemovals,
    pub(super) leases: BoxStream<'static, Result<LeaseEvent, StoreError>>,
    /// Since when `leases` is followed.
    pub(super) watched_from: Instant,
    /// Between watches that ended.
    pub(super) watches: Backoff,
    /// Changes of the configuration.
    pub(super) configs: ConfigWatch,
    /// Whether the store has a configuration as far as it has said. One that has none has forgotten more than that.
    pub(super) config_known: bool,
    /// A configuration that the node has not looked at yet.
    pub(super) new_config: Option<NetworkConfig>,
    /// When to ask `leases` again after an error.
    pub(super) poll_from: Instant,
    /// Between errors of the watch.
    pub(super) watch_errors: Backoff,
    /// When to sync next, if there is a reason to.
    pub(super) sync_at: Option<Instant>,
    /// Whether the next sync has to look at our own end as well.
    pub(super) advertise: bool,
    /// When to look for drift again.
    pub(super) listen_from: Instant,
    /// Between failed syncs.
    pub(super) backoff: Backoff,
    /// Who wants to know how packets reach peers, once the network is not worked on.
    pub(super) transport_requests: Vec<oneshot::Sender<Vec<(Subnet, Transport)>>>,
    /// Between failures to hear of drift.
    pub(super) drift_backoff: Backoff,
}

/// The next item of a watch, which is not asked before `from`. Dropping it loses nothing.
pub(super) async fn next_event(
    leases: &mut BoxStream<'static, Result<LeaseEvent, StoreError>>,
    from: Instant,
) -> Option<Result<LeaseEvent, StoreError>> {
    if from > Instant::now() {
        sleep_until(from).await;
    }
    leases.next().await
}

impl Session {
    /// Syncs at `latest` if not before.
    pub(super) fn sync_by(&mut self, latest: Instant) {
        self.sync_at = Some(self.sync_at.map_or(latest, |at| at.min(latest)));
    }

    pub(super) fn is_due(&self) -> bool {
        self.known && self.sync_at.is_some_and(|at| at <= Instant::now())
    }

    pub(super) fn next_operation(&mut self) -> Operation {
        if !self.is_due() {
            return Operation::Drift(self.listen_from);
        }
        self.sync_at = None;
        Operation::Sync {
            peers: Arc::clone(&self.peers),
            advertise: self.advertise.then(|| self.peers.own().clone()),
        }
    }
}
