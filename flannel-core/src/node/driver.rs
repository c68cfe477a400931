//! The event loop.

mod follow;

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    select,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{
    Instrument, Span, error,
    field::{Empty, display},
    info, info_span, warn,
};

use super::{
    NodeError, NodeOptions, OnLeaseLoss, Request, Status, Stopped,
    failure::Failure,
    lease_keeper::{LeaseExpired, LeaseKeeper, LeaseOutcome, Timing, at},
    operation::{Operation, Outcome, operate},
    outage_log::{Failed, OutageLog},
    pings::Pings,
    random::Random,
    removals::PendingRemovals,
    session::{Session, next_event},
    status::log_problems,
};
use crate::{
    backend::{Backend, BackendError, Network},
    backoff::Backoff,
    config::NetworkConfig,
    fault::{Activity, Fault, Faulty, error_chain},
    lease::{Lease, LeaseAttrs, LeaseEvent},
    peers::Peers,
    report::SyncReport,
    store::{Store, StoreError, SubnetLease},
};

pub(super) struct Driver {
    store: Arc<dyn Store>,
    backend: Arc<dyn Backend>,
    options: NodeOptions,
    status: watch::Sender<Status>,
    requests: mpsc::Receiver<Request>,
    outages: Mutex<OutageLog>,
    random: Random,
}

/// Why the loop turned.
enum Input {
    Answered,
    Due,
    Gone,
    OwnLease(LeaseOutcome),
    Lease(Option<Result<LeaseEvent, StoreError>>),
    Outcome(Outcome),
    Request(Request),
    Stop,
}

/// How a session ends.
enum End {
    /// The subnet is another one.
    Moved(Lease),
    Stop,
}

impl Driver {
    pub(super) fn new(
        store: Arc<dyn Store>,
        backend: Arc<dyn Backend>,
        options: NodeOptions,
        status: watch::Sender<Status>,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        let random = Random::new(options.seed);
        Self { store, backend, options, status, requests, outages: Mutex::default(), random }
    }

    pub(super) async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        pings: Pings,
    ) -> Result<Stopped, NodeError> {
        let span =
            info_span!("node", node = Empty, network = Empty, backend = Empty, subnet = Empty);
        if let Some(name) = &self.options.name {
            span.record("node", name);
        }
        if let Some(network) = &self.options.network {
            span.record("network", network);
        }
        let stop = pin!(stop);
        self.drive(stop, pings, span.clone()).instrument(span).await
    }

    async fn drive<S: Future<Output = ()>>(
        &mut self,
        mut stop: Pin<&mut S>,
        mut pings: Pings,
        span: Span,
    ) -> Result<Stopped, NodeError> {
        let started = {
            let mut acquiring = pin!(self.acquire());
            loop {
                select! {
                    biased;
                    () = &mut stop => return Ok(Stopped::default()),
                    () = pings.answer() => {}
                    started = &mut acquiring => break started?,
                }
            }
        };
        let (config, lease) = started;
        let mut current = lease.1.lease().clone();
        let mut session = Session {
            keeper: LeaseKeeper::new(
                Arc::clone(&self.store),
                lease,
                self.backoff(),
                self.fork(),
                Timing { deadline: self.options.deadline, margin: self.options.renew_margin },
            ),
            pings,
            peers: Arc::new(Peers::new(config, current.clone())),
            known: false,
            removals: PendingRemovals::default(),
            leases: self.store.watch(),
            watched_from: Instant::now(),
            watches: self.backoff(),
            poll_from: Instant::now(),
            watch_errors: self.backoff().limited_to(WATCH_PAUSE),
            sync_at: None,
            advertise: false,
            listen_from: Instant::now(),
            backoff: self.backoff(),
            drift_backoff: self.backoff(),
            transport_requests: Vec::new(),
        };
        self.trust(&session.keeper);
        loop {
            span.record("subnet", display(current.subnet));
            let (end, network) = match self.start(&mut session, &current, &mut stop).await? {
                Err(end) => (end, None),
                Ok(mut network) => {
                    self.status.send_modify(|status| status.mtu = Some(network.mtu()));
                    session.sync_at = Some(Instant::now());
                    // What was found before the lease was there may have changed unseen since.
                    session.advertise = true;
                    let end = self.serve(&mut session, &mut network, &mut stop).await?;
                    (end, Some(network))
                }
            };
            match end {
                End::Moved(lease) => current = lease,
                End::Stop => {
                    let lease = session.keeper.into_lease(STOP_GRACE).await;
                    break Ok(Stopped { lease, network });
                }
            }
        }
    }

    /// Everything up to the first lease.
    async fn acquire(
        &mut self,
    ) -> Result<(NetworkConfig, (Instant, Box<dyn SubnetLease>)), NodeError> {
        let mut random = self.fork();
        let Self { store, backend, .. } = &*self;
        let random = &mut random;
        let config = self.persist(Activity::Config, random, || store.config()).await?;
        let span = Span::current();
        if self.options.network.is_none() {
            span.record("network", blocks(&config));
        }
        span.record("backend", config.backend().kind());
        self.status.send_modify(|status| status.config = Some(config.clone()));
        let previous = self.persist(Activity::Acquire, random, || store.previous()).await?;
        let advertise = || backend.advertise(previous.as_ref());
        let attrs = self.persist(Activity::Advertise, random, advertise).await?;
        let acquire = || {
            let (began, acquired) = (Instant::now(), store.acquire(&attrs));
            async move { acquired.await.map(|lease| (began, lease)) }
        };
        let lease = self.persist(Activity::Acquire, random, acquire).await?;
        let held = lease.1.lease().clone();
        if let (None, Some(node)) = (&self.options.name, &held.node) {
            span.record("node", node.as_str());
        }
        info!(subnet = %held.subnet, "lease held");
        self.status.send_modify(|status| status.lease = Some(held));
        Ok((config, lease))
    }

    /// Brings up the data path of `lease`. That may take long; the lease is kept meanwhile.
    async fn start<S: Future<Output = ()>>(
        &mut self,
        session: &mut Session,
        lease: &Lease,
        stop: &mut Pin<&mut S>,
    ) -> Result<Result<Box<dyn Network>, End>, NodeError> {
        let mut random = self.fork();
        let this = &*self;
        let mut started =
            pin!(this.persist(Activity::Start, &mut random, || this.backend.start(lease)));
        loop {
            select! {
                biased;
                () = stop.as_mut() => return Ok(Err(End::Stop)),
                () = session.pings.answer() => {}
                outcome = session.keeper.next() => if let Some(moved) = this.lease_changed(session, outcome)? {
                    return Ok(Err(End::Moved(moved)));
                },
                network = &mut started => return network.map(Ok),
            }
        }
    }

    /// Calls until it succeeds or fails for good.
    async fn persist<T, E: Failure, F: Future<Output = Result<T, E>>>(
        &self,
        activity: Activity,
        random: &mut Random,
        call: impl Fn() -> F,
    ) -> Result<T, NodeError> {
        let mut backoff = self.backoff();
        loop {
            let error = match timeout(self.options.deadline, call()).await {
                Ok(Ok(value)) => {
                    self.succeed(activity);
                    return Ok(value);
                }
                Ok(Err(error)) => error,
                Err(elapsed) => E::late(activity.to_string(), elapsed),
            };
            if !error.is_retryable() {
                return Err(error.into_final());
            }
            self.fail(activity, &error);
            sleep(backoff.after_failure(random.next())).await;
        }
    }

    /// The loop proper. Every arm of the `select!` computes a value; the body acts on it.
    async fn serve<S: Future<Output = ()>>(
        &mut self,
        session: &mut Session,
        network: &mut Box<dyn Network>,
        stop: &mut Pin<&mut S>,
    ) -> Result<End, NodeError> {
        let (backend, deadline) = (Arc::clone(&self.backend), self.options.deadline);
        loop {
            self.drain(session).await;
            for reply in session.transport_requests.drain(..) {
                let served = session.peers.iter().map(|peer| peer.subnet);
                let transports =
                    served.filter_map(|subnet| Some((subnet, network.transport(&subnet)?)));
                // Whoever transport_requests may have gone meanwhile.
                reply.send(transports.collect()).ok();
            }
            let operation = session.next_operation();
            let waiting = matches!(operation, Operation::Drift(_));
            let outcome = {
                let work = operate(backend.as_ref(), network.as_mut(), operation, deadline);
                let mut work = pin!(work);
                loop {
                    let sync_at = session.sync_at.filter(|_| waiting && session.known);
                    let input = select! {
                        biased;
                        () = stop.as_mut() => Input::Stop,
                        () = session.pings.answer() => Input::Answered,
                        outcome = session.keeper.next() => Input::OwnLease(outcome),
                        Some(request) = self.requests.recv(), if session.known => Input::Request(request),
                        outcome = &mut work => Input::Outcome(outcome),
                        item = next_event(&mut session.leases, session.poll_from) => Input::Lease(item),
                        () = at(session.removals.next()) => Input::Gone,
                        () = at(sync_at) => Input::Due,
                    };
                    match input {
                        Input::Answered => {}
                        Input::Stop => {
                            if !waiting {
                                timeout(STOP_GRACE, &mut work).await.ok();
                            }
                            return Ok(End::Stop);
                        }
                        Input::OwnLease(outcome) => {
                            if let Some(moved) = self.lease_changed(session, outcome)? {
                                return Ok(End::Moved(moved));
                            }
                        }
                        Input::Request(Request::Peers(reply)) => {
                            reply.send(Arc::clone(&session.peers)).ok();
                        }
                        Input::Request(Request::Transports(reply)) => {
                            session.transport_requests.push(reply)
                        }
                        Input::Gone => {
                            while let Some(subnet) = session.removals.gone(Instant::now()) {
                                self.fold(session, LeaseEvent::Remove(subnet));
                            }
                        }
                        Input::Lease(item) => self.lease(session, item),
                        Input::Outcome(outcome) => break Some(outcome),
                        Input::Due => break None,
                    }
                    if waiting && (session.is_due() || !session.transport_requests.is_empty()) {
                        break None;
                    }
                }
            };
            match outcome {
                Some(Outcome::Drifted(result)) => self.drifted(session, result),
                Some(Outcome::Synced { result, attrs }) => {
                    self.advertised(session, attrs);
                    self.synced(session, result.map(|report| *report), network.mtu());
                }
                None => {}
            }
        }
    }

    /// Acts on what happened to our lease; returns the new one if its subnet is another.
    fn lease_changed(
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
    fn trust(&self, keeper: &LeaseKeeper) {
        self.status.send_if_modified(|status| {
            status.trusted_until = keeper.trusted_until();
            false
        });
    }

    fn drifted(&mut self, session: &mut Session, result: Result<(), BackendError>) {
        session.advertise = true;
        let now = Instant::now();
        match result {
            Ok(()) => {
                session.drift_backoff.reset();
                session.sync_at = Some(now);
                session.listen_from = now + DRIFT_PAUSE;
            }
            // What cannot be heard has to be looked for.
            Err(error) => {
                self.fail(Activity::Sync, &error);
                let retry = now + session.drift_backoff.after_failure(self.random.next());
                session.sync_by(retry);
                session.listen_from = retry + DRIFT_PAUSE;
            }
        }
    }

    fn advertised(
        &mut self,
        session: &mut Session,
        attrs: Option<Result<LeaseAttrs, BackendError>>,
    ) {
        match attrs {
            None => {}
            Some(Ok(attrs)) => {
                self.succeed(Activity::Advertise);
                session.advertise = false;
                session.keeper.publish(attrs);
            }
            Some(Err(error)) => self.fail(Activity::Advertise, &error),
        }
    }

    fn synced(
        &mut self,
        session: &mut Session,
        result: Result<SyncReport, BackendError>,
        mtu: u32,
    ) {
        let again = match &result {
            Ok(report) => report.wants_retry() || session.advertise,
            Err(_) => true,
        };
        if again {
            let retry = Instant::now() + session.backoff.after_failure(self.random.next());
            session.sync_by(retry);
        } else {
            session.backoff.reset();
        }
        match result {
            Ok(report) => {
                self.succeed(Activity::Sync);
                if report.writes() > 0 {
                    let SyncReport { added, replaced, removed, .. } = report;
                    info!(peers = session.peers.len(), added, replaced, removed, "synced");
                }
                self.status.send_modify(|status| {
                    status.count(&report);
                    log_problems(status.last_sync.as_ref(), &report);
                    status.set_faults(Activity::Sync, report.faults.clone());
                    status.syncs += 1;
                    status.writes += report.writes();
                    status.in_sync = report.is_exact();
                    status.mtu = Some(mtu);
                    status.last_sync = Some(report);
                });
            }
            Err(error) => {
                self.status.send_modify(|status| status.in_sync = false);
                self.fail(Activity::Sync, &error);
            }
        }
    }

    /// Shows and logs a failure that is retried.
    fn fail(&self, activity: Activity, error: &(impl Faulty + 'static)) {
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

    fn show_fault(&self, activity: Activity, error: &(impl Faulty + 'static)) {
        let fault = Fault::of(activity, error);
        self.status.send_if_modified(|status| status.set_faults(activity, vec![fault]));
    }

    fn succeed(&self, activity: Activity) {
        if let Some((failures, lasted)) = self.outages().succeeded(activity, Instant::now()) {
            info!(failures, ?lasted, "can {activity} again");
        }
        self.status.send_if_modified(|status| status.set_faults(activity, Vec::new()));
    }

    fn outages(&self) -> MutexGuard<'_, OutageLog> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Random numbers for something that goes on beside the loop.
    fn fork(&mut self) -> Random {
        Random::new(self.random.next())
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.options.retry_shortest, self.options.retry_longest)
    }
}

/// The address blocks of a network, for people.
fn blocks(config: &NetworkConfig) -> String {
    let ipv4 = config.ipv4().map(|range| range.network().to_string());
    let ipv6 = config.ipv6().map(|range| range.network().to_string());
    ipv4.into_iter().chain(ipv6).collect::<Vec<_>>().join(",")
}

impl Drop for Driver {
    /// However the node ended, whoever looks at it sees that.
    fn drop(&mut self) {
        self.status.send_modify(|status| status.ended = true);
    }
}

/// How long a node that was transport_requests to stop waits for a sync under way, and then for the store.
/// Together less than the second in which supervisors and users expect a stop.
const STOP_GRACE: Duration = Duration::from_millis(400);

/// The longest time between two looks at a watch that fails. Stores wait by themselves; one that does not costs no more than this.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// The shortest time between two repairs. Somebody who changes the data path all the time costs 20 syncs a second at most, and
/// a single change is repaired at once.
const DRIFT_PAUSE: Duration = Duration::from_millis(50);
