//! A watch that never ends: list, follow, and list again whenever following breaks.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use flannel_core::{Backoff, Lease, LeaseEvent, StoreError};
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    registry::{Change, Lifetime, Record, Registry, RegistryError, Snapshot},
    registry_store::{Shared, store_error},
};

/// The lease events of a store's registry, for one watcher, from what is `known` of it if anything is.
pub(crate) fn stream<R: Registry>(
    known: Option<Snapshot>,
    shared: Arc<Shared<R>>,
) -> BoxStream<'static, Result<LeaseEvent, StoreError>> {
    let watch = Watch {
        shared,
        backoff: Backoff::new(SHORTEST_WAIT, LONGEST_WAIT),
        state: known.map_or(State::Listing(Duration::ZERO), State::Listed),
    };
    stream::unfold(watch, async |mut watch| Some((watch.next().await, watch))).boxed()
}

struct Watch<R> {
    shared: Arc<Shared<R>>,
    backoff: Backoff,
    state: State,
}

enum State {
    Following {
        changes: BoxStream<'static, Result<Change, RegistryError>>,
        since: Instant,
    },
    /// To be followed from here.
    Listed(Snapshot),
    /// To be listed after a wait.
    Listing(Duration),
}

impl<R: Registry> Watch<R> {
    async fn next(&mut self) -> Result<LeaseEvent, StoreError> {
        loop {
            match &mut self.state {
                State::Listed(snapshot) => {
                    let snapshot = std::mem::take(snapshot);
                    self.shared.overlaps.listed(&snapshot, &self.shared.node);
                    let leases = self.reset(&snapshot.records);
                    self.state = State::Following {
                        changes: self.shared.registry.watch(snapshot),
                        since: Instant::now(),
                    };
                    return Ok(LeaseEvent::Reset(leases));
                }
                State::Listing(wait) => {
                    tokio::time::sleep(*wait).await;
                    match self.shared.registry.list().await {
                        Ok(snapshot) => self.state = State::Listed(snapshot),
                        Err(error) => {
                            self.retry();
                            return Err(store_error(error));
                        }
                    }
                }
                State::Following { changes, since } => {
                    let since = *since;
                    match changes.next().await {
                        Some(Ok(change)) => {
                            self.shared.overlaps.changed(&change, &self.shared.node);
                            if let Some(event) = self.event(change) {
                                return Ok(event);
                            }
                        }
                        Some(Err(error)) if !matches!(error, RegistryError::Compacted { .. }) => {
                            self.followed_since(since);
                            return Err(store_error(error));
                        }
                        lost => {
                            debug!(?lost, "following the leases broke, listing them again");
                            self.followed_since(since);
                        }
                    }
                }
            }
        }
    }

    /// Lists again soon, if following worked for long enough.
    fn followed_since(&mut self, since: Instant) {
        if since.elapsed() >= LONGEST_WAIT {
            self.backoff.reset();
        }
        self.retry();
    }

    fn retry(&mut self) {
        self.state = State::Listing(self.backoff.after_failure(self.shared.random()));
    }

    fn reset(&self, records: &[Record]) -> Vec<Arc<Lease>> {
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
        records.iter().filter_map(|record| self.lease(record)).collect()
    }

    fn event(&self, change: Change) -> Option<LeaseEvent> {
        let key = match change {
            Change::Delete(key) => key,
            Change::Put(record) => match self.lease(&record) {
                Some(lease) => return Some(LeaseEvent::Upsert(lease)),
                // Whatever lease was there before is not there any more.
                None => record.key,
            },
        };
        key.parse().ok().map(LeaseEvent::Remove)
    }

    fn lease(&self, record: &Record) -> Option<Arc<Lease>> {
        if record.lifetime == Lifetime::Lapsed {
            return None;
        }
        let lease = record.lease();
        let lease = lease.inspect_err(|reason| self.shared.record_errors.note(record, reason));
        lease.ok().map(Arc::new)
    }
}

/// 100 ms to 5 s, as flannel waits before it watches etcd again.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
