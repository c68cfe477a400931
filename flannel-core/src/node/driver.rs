//! The event loop.

mod follow;
mod own_lease;
mod reconfigure;
mod show;
mod starting;

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    select,
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tracing::{
    Instrument, Span,
    field::{Empty, display},
    info, info_span,
};

use super::{
    NodeError, NodeOptions, Request, Status, Stopped,
    config_watch::ConfigWatch,
    lease_keeper::{LeaseKeeper, LeaseOutcome, Timing, at},
    operation::{Operation, Outcome, operate},
    outage_log::OutageLog,
    pings::Pings,
    removals::{Grace, PendingRemovals},
    session::{Session, next_event},
    status::log_problems,
};
use crate::{
    backend::{Backend, BackendError, Network},
    backoff::Backoff,
    config::NetworkConfig,
    fault::Activity,
    lease::{Lease, LeaseAttrs, LeaseEvent},
    peer_fault::PeerProblem,
    peers::Peers,
    public_address::check_published,
    random::SplitMix64,
    report::SyncReport,
    store::{Store, StoreError},
};

pub(super) struct Driver {
    store: Arc<dyn Store>,
    backend: Arc<dyn Backend>,
    options: NodeOptions,
    status: watch::Sender<Status>,
    requests: mpsc::Receiver<Request>,
    outages: Mutex<OutageLog>,
    random: SplitMix64,
}

/// Why the loop turned.
enum Input {
    Answered,
    Config(Result<NetworkConfig, StoreError>),
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
        let random = SplitMix64::new(options.seed);
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
            removals: PendingRemovals::new(Grace {
                single: self.options.removal_grace,
                bulk: self.options.bulk_removal_grace,
            }),
            leases: self.store.watch(),
            watched_from: Instant::now(),
            watches: self.backoff(),
            configs: ConfigWatch::new(&*self.store, self.options.retry_shortest),
            config_known: true,
            new_config: None,
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
            if let Some(config) = session.new_config.take() {
                self.adopt(session, network.as_mut(), &config);
            }
            for reply in session.transport_requests.drain(..) {
                let served = session.peers.iter().map(|peer| peer.subnet);
                let transports =
                    served.filter_map(|subnet| Some((subnet, network.transport(&subnet)?)));
                // Whoever asked may have gone meanwhile.
                reply.send(transports.collect()).ok();
            }
            let operation = session.next_operation();
            let waiting = matches!(operation, Operation::Drift(_));
            let outcome = {
                let work = operate(backend.as_ref(), network.as_mut(), operation, deadline);
                let mut work = pin!(work);
                loop {
                    let random = self.random.next_u64();
                    let sync_at = session.sync_at.filter(|_| waiting && session.known);
                    let input = select! {
                        biased;
                        () = stop.as_mut() => Input::Stop,
                        () = session.pings.answer() => Input::Answered,
                        outcome = session.keeper.next() => Input::OwnLease(outcome),
                        Some(request) = self.requests.recv(), if session.known => Input::Request(request),
                        outcome = &mut work => Input::Outcome(outcome),
                        item = next_event(&mut session.leases, session.poll_from) => Input::Lease(item),
                        config = session.configs.next(random) => Input::Config(config),
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
                        Input::Config(item) => self.config_changed(session, item),
                        Input::Gone => self.remove_gone(session),
                        Input::Lease(item) => self.lease(session, item),
                        Input::Outcome(outcome) => break Some(outcome),
                        Input::Due => break None,
                    }
                    if waiting
                        && (session.is_due()
                            || session.new_config.is_some()
                            || !session.transport_requests.is_empty())
                    {
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
                let retry = now + session.drift_backoff.after_failure(self.random.next_u64());
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
                if let Err(source) = check_published(&attrs) {
                    return self.fail(Activity::Advertise, &BackendError::Address { source });
                }
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
            let retry = Instant::now() + session.backoff.after_failure(self.random.next_u64());
            session.sync_by(retry);
        } else {
            session.backoff.reset();
        }
        match result {
            Ok(mut report) => {
                self.succeed(Activity::Sync);
                if report.writes() > 0 {
                    let SyncReport { added, replaced, removed, .. } = report;
                    info!(peers = session.peers.len(), added, replaced, removed, "synced");
                }
                self.status.send_modify(|status| {
                    status.count(&report);
                    let before = status.last_sync.as_ref().map_or(&[][..], |it| &it.problems);
                    PeerProblem::keep_since(&mut report.problems, before);
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

    /// Random numbers for something that goes on beside the loop.
    fn fork(&mut self) -> SplitMix64 {
        SplitMix64::new(self.random.next_u64())
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.options.retry_shortest, self.options.retry_longest)
    }
}

impl Drop for Driver {
    /// However the node ended, whoever looks at it sees that.
    fn drop(&mut self) {
        self.status.send_modify(|status| status.ended = true);
    }
}

/// How long a node that was asked to stop waits for a sync under way, and then for the store.
/// Together less than the second in which supervisors and users expect a stop.
const STOP_GRACE: Duration = Duration::from_millis(400);

/// The longest time between two looks at a watch that fails. Stores wait by themselves; one that does not costs no more than this.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// The shortest time between two repairs. Somebody who changes the data path all the time costs 20 syncs a second at most, and
/// a single change is repaired at once.
const DRIFT_PAUSE: Duration = Duration::from_millis(50);
