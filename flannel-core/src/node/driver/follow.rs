//! What the node makes of lease events.

use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::Driver;
use crate::{
    fault::Activity,
    lease::LeaseEvent,
    node::{
        operation::yield_once,
        session::{Session, next_event},
    },
    peer_fault::PeerProblem,
    store::StoreError,
    subnet::Subnet,
};

impl Driver {
    /// Folds the events that are there already, so that a burst of them costs one sync.
    pub(super) async fn drain(&mut self, session: &mut Session) {
        let mut paused = false;
        for _ in 0..BURST {
            match next_event(&mut session.leases, session.poll_from).now_or_never() {
                Some(item) => {
                    self.lease(session, item);
                    paused = false;
                }
                None if paused => return,
                // A stream of tokio pretends to be empty when its task has had its share. The next turn tells.
                None => {
                    yield_once().await;
                    paused = true;
                }
            }
        }
    }

    pub(super) fn lease(
        &mut self,
        session: &mut Session,
        item: Option<Result<LeaseEvent, StoreError>>,
    ) {
        let event = match item {
            Some(Ok(event)) => event,
            Some(Err(error)) => {
                let pause = session.watch_errors.after_failure(self.random.next_u64());
                session.poll_from = Instant::now() + pause;
                return self.fail(Activity::Watch, &error);
            }
            None => return self.watch_again(session),
        };
        session.watch_errors.reset();
        self.succeed(Activity::Watch);
        if let LeaseEvent::Reset(_) = event
            && !session.known
        {
            session.known = true;
            session.sync_at = Some(Instant::now());
        }
        debug!(?event, "lease event");
        let own =
            matches!(&event, LeaseEvent::Remove(subnet) if *subnet == session.peers.own().subnet);
        let now = Instant::now();
        let events =
            if own { vec![event] } else { session.removals.admit(event, &session.peers, now) };
        for event in events {
            self.fold(session, event);
        }
    }

    /// Takes an event in among what is known of the peers.
    pub(super) fn fold(&self, session: &mut Session, event: LeaseEvent) {
        let peers = Arc::make_mut(&mut session.peers);
        let rewritten =
            matches!(&event, LeaseEvent::Upsert(lease) if lease.subnet == peers.own().subnet);
        let folded = peers.fold(event);
        if folded.peers_changed {
            session.sync_at = Some(Instant::now());
        }
        if folded.own_differs {
            session.keeper.check();
        } else if rewritten {
            session.keeper.rewritten();
        }
        self.show_peers(session);
    }

    pub(super) fn show_peers(&self, session: &Session) {
        if session.known {
            let count = session.peers.len();
            let mut refused: Vec<_> = session.peers.refused().collect();
            self.status.send_if_modified(|status| {
                PeerProblem::keep_since(&mut refused, &status.refused);
                let changed = (status.peers, &status.refused) != (Some(count), &refused);
                (status.peers, status.refused) = (Some(count), refused);
                changed
            });
        }
    }

    /// Removes the peers that were waited for long enough. While the store has no configuration it is not believed.
    pub(super) fn remove_gone(&self, session: &mut Session) {
        let now = Instant::now();
        if !session.config_known {
            return session.removals.all_in_bulk(now);
        }
        let liveness = self.options.liveness.as_ref();
        let peers = Arc::clone(&session.peers);
        let answers = |subnet: &Subnet| {
            liveness.zip(peers.get(subnet)).is_some_and(|(liveness, peer)| liveness.answers(peer))
        };
        while let Some(subnet) = session.removals.gone(now, answers) {
            self.fold(session, LeaseEvent::Remove(subnet));
        }
    }

    /// Follows the leases anew after a pause. Stores promise that they never need it.
    fn watch_again(&mut self, session: &mut Session) {
        warn!("the store's watch ended, opening another");
        let now = Instant::now();
        if now.saturating_duration_since(session.watched_from) >= self.options.retry_longest {
            session.watches.reset();
        }
        let wait = session.watches.after_failure(self.random.next_u64());
        session.watched_from = now + wait;
        let store = Arc::clone(&self.store);
        let watch = async move {
            sleep(wait).await;
            store.watch()
        };
        session.leases = watch.flatten_stream().boxed();
    }
}

/// The most events that are folded before anything else gets its turn: a burst of 10,000 leases takes three turns.
const BURST: usize = 4096;
