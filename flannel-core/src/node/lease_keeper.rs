//! Keeps this node's lease: renews it, publishes changes, and takes one anew when it is lost.

use std::{mem, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    backoff::Backoff,
    fault::{FaultKind, Faulty},
    lease::{Lease, LeaseAttrs},
    random::SplitMix64,
    store::{Store, StoreError, SubnetLease, trusted_for},
    subnet::Subnet,
};

/// The lease side of a node. It never blocks the rest of the node: [`next`](Self::next) may be dropped at any await, and what
/// was under way goes on with the next call.
pub(super) struct LeaseKeeper {
    store: Arc<dyn Store>,
    /// The lease as last written, also while it is being worked on or lost.
    lease: Lease,
    /// What should be published.
    attrs: LeaseAttrs,
    state: State,
    /// When there is something to do; `None` for a lease that never expires.
    due: Option<Instant>,
    /// When the call began that is under way or was the last.
    began: Instant,
    /// Until when the lease can be trusted; `None` for ever, or if that is over and was said.
    trusted_until: Option<Instant>,
    /// Whether to check once more after what is under way, which may have asked the store too early.
    again: bool,
    /// The same, and there is no hurry.
    again_later: bool,
    /// Between failures.
    backoff: Backoff,
    /// The same where the lease does not say that there is less time.
    idle_backoff: Backoff,
    /// Between losses that follow each other.
    losses: Backoff,
    taken_anew: Option<Instant>,
    random: SplitMix64,
    deadline: Duration,
    margin: Duration,
}

/// How a keeper deals with time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How long one call may take.
    pub(super) deadline: Duration,
    /// How much of its life a lease has at least when it is renewed.
    pub(super) margin: Duration,
}

enum State {
    Held(Box<dyn SubnetLease>),
    Lost,
    Working(BoxFuture<'static, CallOutcome>),
    /// Only between two lines of [`LeaseKeeper::next`].
    Moving,
}

enum CallOutcome {
    Acquired(Result<Box<dyn SubnetLease>, StoreError>),
    Kept(Box<dyn SubnetLease>, Result<(), StoreError>),
}

/// A store that has something else than was published.
#[derive(Debug, thiserror::Error)]
#[error("the store has {stored} where {published} was published")]
struct Altered {
    published: LeaseAttrs,
    stored: LeaseAttrs,
}

/// Why a lease that was not lost is not trusted.
#[derive(Debug, thiserror::Error)]
#[error("the lease of {subnet} was not renewed before its time was over, another node may have it")]
pub(super) struct LeaseExpired {
    pub(super) subnet: Subnet,
}

impl Faulty for LeaseExpired {
    fn kind(&self) -> FaultKind {
        FaultKind::LeaseExpired
    }

    fn object(&self) -> &'static str {
        "lease"
    }
}

/// What happened to the lease.
#[derive(Debug)]
pub(super) enum LeaseOutcome {
    /// It was taken anew after a loss; the subnet may be another.
    Acquired(Lease),
    /// It could not be taken anew; tried again later.
    AcquireFailed(StoreError),
    /// It was not renewed for so long that somebody else may have it. Renewing it goes on.
    Expired(Lease),
    /// It was not renewed; tried again later.
    RenewFailed(StoreError),
    /// It is gone. Taking one anew has begun.
    Lost(StoreError),
    /// It was renewed, perhaps with other attributes.
    Renewed(Lease),
}

impl LeaseKeeper {
    /// Keeps `lease`, which was taken by a call that began at `began`.
    pub(super) fn new(
        store: Arc<dyn Store>,
        (began, lease): (Instant, Box<dyn SubnetLease>),
        backoff: Backoff,
        random: SplitMix64,
        Timing { deadline, margin }: Timing,
    ) -> Self {
        let current = lease.lease().clone();
        let mut keeper = Self {
            store,
            attrs: current.attrs.clone(),
            lease: current,
            due: None,
            again: false,
            again_later: false,
            began,
            trusted_until: None,
            state: State::Moving,
            losses: backoff.clone(),
            taken_anew: None,
            idle_backoff: backoff.clone(),
            backoff,
            random,
            deadline,
            margin,
        };
        keeper.hold(lease);
        keeper
    }

    /// Publishes `attrs` soon, if they are others than published already.
    pub(super) fn publish(&mut self, attrs: LeaseAttrs) {
        if attrs != self.attrs {
            self.attrs = attrs;
            self.check();
        }
    }

    /// Finds out soon whether the lease is still ours.
    pub(super) fn check(&mut self) {
        match self.state {
            State::Held(_) => self.due = Some(Instant::now()),
            State::Working(_) => self.again = true,
            // Taking one anew finds out.
            State::Lost | State::Moving => {}
        }
    }

    /// Until when the lease can be trusted; `None` for ever, or if that is over and was said.
    pub(super) fn trusted_until(&self) -> Option<Instant> {
        self.trusted_until
    }

    /// Finds out why the lease was written as it is: perhaps by ourselves, perhaps by who wants to know whether we live. It is
    /// no hurry, and two that do it to each other do it at this pace.
    pub(super) fn rewritten(&mut self) {
        match self.state {
            State::Held(_) => {
                let soon = Instant::now().max(self.began + CHECK_PAUSE);
                self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
            }
            State::Working(_) => self.again_later = true,
            State::Lost | State::Moving => {}
        }
    }

    /// Takes a lost lease anew at once: what kept it from being taken is over.
    pub(super) fn retry_now(&mut self) {
        if matches!(self.state, State::Lost) {
            self.backoff.reset();
            self.due = Some(Instant::now());
        }
    }

    /// Waits for the next thing that happens to the lease.
    pub(super) async fn next(&mut self) -> LeaseOutcome {
        let trusted_until = self.trusted_until;
        select! {
            biased;
            kept = self.work() => kept,
            () = at(trusted_until) => {
                self.trusted_until = None;
                LeaseOutcome::Expired(self.lease.clone())
            }
        }
    }

    async fn work(&mut self) -> LeaseOutcome {
        loop {
            if let State::Working(work) = &mut self.state {
                let outcome = work.await;
                return self.settle(outcome);
            }
            at(self.due).await;
            self.begin();
        }
    }

    /// The lease for whoever goes on with it, if what is under way ends within `grace`.
    pub(super) async fn into_lease(mut self, grace: Duration) -> Option<Box<dyn SubnetLease>> {
        if matches!(self.state, State::Working(_)) {
            timeout(grace, self.work()).await.ok();
        }
        match self.state {
            State::Held(lease) => Some(lease),
            State::Lost | State::Working(_) | State::Moving => None,
        }
    }

    fn begin(&mut self) {
        self.began = Instant::now();
        let (attrs, deadline) = (self.attrs.clone(), self.deadline);
        (self.again, self.again_later) = (false, false);
        self.state = match mem::replace(&mut self.state, State::Moving) {
            State::Held(mut lease) => State::Working(Box::pin(async move {
                let result = if lease.lease().attrs == attrs {
                    timeout(deadline, lease.renew()).await
                } else {
                    let published = timeout(deadline, lease.publish(&attrs)).await;
                    // Publishing it again would give the same, for ever.
                    published.map(|result| result.and_then(|()| as_published(&*lease, &attrs)))
                };
                let subnet = lease.lease().subnet;
                let result =
                    result.unwrap_or_else(|elapsed| Err(late(format!("renew {subnet}"), elapsed)));
                CallOutcome::Kept(lease, result)
            })),
            State::Lost => {
                let store = Arc::clone(&self.store);
                State::Working(Box::pin(async move {
                    let acquired = timeout(deadline, store.acquire(&attrs)).await;
                    CallOutcome::Acquired(
                        acquired
                            .unwrap_or_else(|elapsed| Err(late("acquire a lease".into(), elapsed))),
                    )
                }))
            }
            working => working,
        };
    }

    fn settle(&mut self, outcome: CallOutcome) -> LeaseOutcome {
        match outcome {
            CallOutcome::Acquired(Ok(lease)) => {
                self.taken_anew = Some(Instant::now());
                self.hold(lease);
                LeaseOutcome::Acquired(self.lease.clone())
            }
            CallOutcome::Acquired(Err(error)) => {
                self.state = State::Lost;
                self.retry();
                LeaseOutcome::AcquireFailed(error)
            }
            CallOutcome::Kept(lease, Ok(())) => {
                self.hold(lease);
                LeaseOutcome::Renewed(self.lease.clone())
            }
            CallOutcome::Kept(_, Err(error @ StoreError::Revoked { .. })) => {
                self.state = State::Lost;
                self.trusted_until = None;
                self.lost();
                LeaseOutcome::Lost(error)
            }
            CallOutcome::Kept(lease, Err(error)) => {
                self.state = State::Held(lease);
                self.retry();
                LeaseOutcome::RenewFailed(error)
            }
        }
    }

    fn hold(&mut self, lease: Box<dyn SubnetLease>) {
        self.lease = lease.lease().clone();
        // A store that was away may count the lease's life from its return on, so that is the time there is.
        self.backoff = match lease.ttl() {
            Some(ttl) => self.idle_backoff.limited_to(ttl / 10),
            None => self.idle_backoff.limited_to(Duration::MAX),
        };
        // A tenth less or more keeps nodes that started together apart.
        let spread = 0.9 + 0.2 * (self.random.next_u64() as f64 / u64::MAX as f64);
        let now = Instant::now();
        self.due = lease.ttl().map(|ttl| now + renewed_after(ttl, self.margin).mul_f64(spread));
        if self.again || self.lease.attrs != self.attrs {
            self.due = Some(now);
        } else if self.again_later {
            self.due = Some(now.max(self.began + CHECK_PAUSE));
        }
        self.trusted_until = lease.ttl().map(|ttl| self.began + trusted_for(ttl));
        self.state = State::Held(lease);
    }

    /// Takes a lease anew: at once, unless it was lost shortly after it was taken anew, as when another node has our name.
    fn lost(&mut self) {
        let now = Instant::now();
        let lasted = self.taken_anew.is_none_or(|taken| now - taken >= LASTING);
        if lasted {
            self.losses.reset();
            self.due = Some(now);
        } else {
            self.due = Some(now + self.losses.after_failure(self.random.next_u64()));
        }
    }

    fn retry(&mut self) {
        self.due = Some(Instant::now() + self.backoff.after_failure(self.random.next_u64()));
    }
}

/// How long after a renewal the next one is due: after a third of the lifetime, which leaves two more chances, or earlier if
/// less than `margin` would be left then. A margin that the lease does not have changes nothing.
fn renewed_after(ttl: Duration, margin: Duration) -> Duration {
    match ttl.checked_sub(margin) {
        // The spread is a tenth.
        Some(latest) if !latest.is_zero() => (ttl / 3).min(latest.mul_f64(1.0 / 1.1)),
        _ => ttl / 3,
    }
}

/// Waits until `instant`, or for ever if there is none.
pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn as_published(lease: &dyn SubnetLease, attrs: &LeaseAttrs) -> Result<(), StoreError> {
    let stored = &lease.lease().attrs;
    if stored == attrs {
        return Ok(());
    }
    let altered = Altered { published: attrs.clone(), stored: stored.clone() };
    let operation = format!("publish the lease of {}", lease.lease().subnet);
    Err(StoreError::Unavailable { operation, source: altered.into() })
}

/// A call that took too long, as the error that it stands for.
pub(super) fn late(operation: String, elapsed: tokio::time::error::Elapsed) -> StoreError {
    StoreError::Unavailable { operation, source: elapsed.into() }
}

/// Between calls that find out who has written the lease.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// A lease that was held for so long is not fought over.
const LASTING: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_after_a_third_or_before_the_margin() {
        let hours = |n: u64| Duration::from_secs(3600 * n);
        assert_eq!(renewed_after(hours(24), hours(1)), hours(8));
        assert_eq!(renewed_after(hours(24), hours(13)), hours(8));
        let early = renewed_after(hours(24), hours(23));
        assert!(early.mul_f64(1.1) <= hours(1) && early > hours(1) / 2, "{early:?}");
        for margin in [hours(24), hours(25)] {
            assert_eq!(renewed_after(hours(24), margin), hours(8));
        }
    }
}
