//! Sends probes and replies.

use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use flannel_netlink::Namespace;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, trace};

use crate::{
    findings::{Findings, Traffic},
    options::Options,
    path::Layer,
    schedule::{Batch, Schedule},
    sockets::{NotSent, Received, Sockets},
    targets::Targets,
    wire::{Datagram, Kind},
};

/// Probes peers and replies to those that probe. Does nothing until [`run`](Self::run) is polled.
#[derive(Debug)]
pub struct Prober {
    sockets: Sockets,
    schedule: Schedule,
    random: Random,
    traffic: Traffic,
    targets: watch::Receiver<Arc<Targets>>,
    findings: watch::Sender<Arc<Findings>>,
}

/// A prober from outside: tells it whom to ask, and reads what it has found. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct ProberHandle {
    targets: watch::Sender<Arc<Targets>>,
    findings: watch::Receiver<Arc<Findings>>,
}

/// Numbers that nobody guesses who has seen others of them.
#[derive(Debug)]
struct Random {
    key: RandomState,
    count: u64,
}

impl Prober {
    /// A prober in `namespace` that knows nobody yet, and a view of it that stays useful while it runs.
    pub fn new(namespace: &Namespace, options: Options) -> (Self, ProberHandle) {
        let targets = watch::Sender::new(Arc::default());
        let findings = watch::Sender::new(Arc::default());
        let prober = Self {
            sockets: Sockets::new(namespace, options.port),
            schedule: Schedule::new(options, Instant::now()),
            random: Random { key: RandomState::new(), count: 0 },
            traffic: Traffic::default(),
            targets: targets.subscribe(),
            findings: findings.clone(),
        };
        (prober, ProberHandle { targets, findings: findings.subscribe() })
    }

    /// Sends probes and replies until it is dropped. Needs a tokio runtime with I/O.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends the prober.
    pub async fn run(mut self) -> Infallible {
        let mut retry = None;
        let mut publish = None;
        // Whether a handle is left that could say something else.
        let mut has_handle = true;
        loop {
            let wake = [self.schedule.next(), retry, publish].into_iter().flatten().min();
            let timer = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                changed = self.targets.changed(), if has_handle => match changed {
                    Ok(()) => Event::TargetsChanged,
                    Err(_) => Event::HandlesDropped,
                },
                received = self.sockets.next() => Event::Received(received),
                () = timer => Event::Timer,
            };
            let now = Instant::now();
            match event {
                Event::HandlesDropped => has_handle = false,
                Event::TargetsChanged => {
                    retry = self.follow(now);
                    publish = Some(now);
                }
                Event::Received(received) => self.receive(&received, now),
                Event::Timer => {
                    if retry.is_some_and(|at| at <= now) {
                        retry = self.follow(now);
                    }
                    if self.send_due(now) {
                        publish = publish.into_iter().chain([now + GATHER]).min();
                    }
                }
            }
            if publish.is_some_and(|at| at <= now) {
                publish = None;
                self.publish();
            } else {
                // What was sent and what came counts too.
                publish.get_or_insert(now + LATER);
            }
        }
    }

    /// Goes on with the targets as they are, and says when to try again what could not be done.
    fn follow(&mut self, now: Instant) -> Option<Instant> {
        let targets = Arc::clone(&self.targets.borrow_and_update());
        self.sockets.follow(&targets.ends);
        let random = &mut self.random;
        self.schedule.follow(&targets, now, || random.share());
        let is_failing = self.sockets.faults().next().is_some();
        is_failing.then_some(now + RETRY)
    }

    /// Sends what is due, and says whether anything new is known.
    fn send_due(&mut self, now: Instant) -> bool {
        let mut all = false;
        // A few at a time, so that answers are taken in between.
        for _ in 0..AT_ONCE {
            let share = self.random.share();
            let random = &mut self.random;
            let Some((send, learnt)) = self.schedule.poll(now, || random.number(), || share) else {
                break;
            };
            all |= learnt;
            if let Some(send) = send {
                self.send(&send, now);
            }
        }
        all
    }

    fn send(&mut self, Batch { key, target, probes }: &Batch, now: Instant) {
        let targets = Arc::clone(&self.targets.borrow());
        let Some(end) = targets.end(target.family()) else { return };
        for probe in probes {
            let (local, to) = match probe.layer {
                Layer::Underlay => (Some(end.local), Some(target.address)),
                Layer::Overlay => (end.overlay, target.overlay),
            };
            let (Some(local), Some(to)) = (local, to) else { continue };
            let size = u16::try_from(probe.size).unwrap_or(u16::MAX);
            let datagram = Datagram::new(Kind::Request, size, probe.nonce);
            let sent = self.sockets.send_request(probe.layer, local, to, &datagram, probe.checksum);
            trace!(peer = %key.0, %to, size, checksum = ?probe.checksum, ?sent, "probed");
            self.traffic.requests_sent += 1;
            if sent == Err(NotSent::TooLarge) {
                self.schedule.refused(*key, probe.nonce, now);
            }
        }
    }

    fn receive(&mut self, received: &Received, now: Instant) {
        let (from, layer) = (received.from.ip(), received.layer);
        let share = self.random.share();
        let counted = match &received.datagram {
            Some(probe) if probe.kind == Kind::Request => {
                let may = self.schedule.may_reply(from, layer, now, || share);
                if may && self.sockets.send_reply(received, probe) {
                    self.traffic.replies_sent += 1;
                }
                may
            }
            Some(Datagram { size, nonce, .. }) => {
                let is_ours = self.schedule.answered(from, layer, *nonce, u32::from(*size), now);
                self.traffic.replies_received += u64::from(is_ours);
                is_ours
            }
            None => false,
        };
        if !counted {
            self.traffic.ignored += 1;
            trace!(%from, ?layer, "ignored");
        }
    }

    fn publish(&self) {
        let faults: Vec<_> = self.sockets.faults().collect();
        debug!(paths = self.schedule.len(), faults = faults.len(), "findings");
        let paths = self.schedule.findings();
        self.findings.send_replace(Arc::new(Findings { paths, faults, traffic: self.traffic }));
    }
}

impl ProberHandle {
    /// Probes and answers these from now on, and nobody else.
    pub fn set_targets(&self, targets: Targets) {
        self.targets.send_if_modified(|current| {
            let is_other = **current != targets;
            if is_other {
                *current = Arc::new(targets);
            }
            is_other
        });
    }

    /// What is known.
    pub fn findings(&self) -> Arc<Findings> {
        Arc::clone(&self.findings.borrow())
    }

    /// Waits for other findings than were last seen through this handle; `None` if the prober has ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn changed(&mut self) -> Option<Arc<Findings>> {
        self.findings.changed().await.ok()?;
        Some(Arc::clone(&self.findings.borrow_and_update()))
    }
}

impl Random {
    fn number(&mut self) -> u64 {
        self.count += 1;
        self.key.hash_one(self.count)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.number() as f64 / u64::MAX as f64
    }
}

/// What happened.
enum Event {
    HandlesDropped,
    Timer,
    TargetsChanged,
    Received(Received),
}

/// Between attempts to open a socket, whose address may come later.
const RETRY: Duration = Duration::from_secs(2);
/// News are gathered for so long, because with many peers they never end.
const GATHER: Duration = Duration::from_millis(100);
/// After anything at all was sent or came, numbers are told within this.
const LATER: Duration = Duration::from_secs(10);
/// How many paths are probed before what came is taken.
const AT_ONCE: usize = 16;
