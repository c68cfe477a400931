//! Asks and answers.

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
    schedule::{Schedule, Send},
    sockets::{Came, NotSent, Sockets},
    targets::Targets,
    wire::{Datagram, Kind},
};

/// Asks peers and answers those that ask. Does nothing until [`run`](Self::run) is polled.
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

    /// Asks and answers for ever. Needs a tokio runtime with I/O.
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
            let turn = tokio::select! {
                changed = self.targets.changed(), if has_handle => match changed {
                    Ok(()) => Turn::Follow,
                    Err(_) => Turn::Alone,
                },
                came = self.sockets.next() => Turn::Take(came),
                () = timer => Turn::Ask,
            };
            let now = Instant::now();
            match turn {
                Turn::Alone => has_handle = false,
                Turn::Follow => {
                    retry = self.follow(now);
                    publish = Some(now);
                }
                Turn::Take(came) => self.take(&came, now),
                Turn::Ask => {
                    if retry.is_some_and(|at| at <= now) {
                        retry = self.follow(now);
                    }
                    if self.ask(now) {
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

    /// Sends what is due, and says whether something was learnt.
    fn ask(&mut self, now: Instant) -> bool {
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

    fn send(&mut self, Send { key, target, questions }: &Send, now: Instant) {
        let targets = Arc::clone(&self.targets.borrow());
        let Some(end) = targets.end(target.family()) else { return };
        for question in questions {
            let (local, to) = match question.layer {
                Layer::Underlay => (Some(end.local), Some(target.address)),
                Layer::Overlay => (end.overlay, target.overlay),
            };
            let (Some(local), Some(to)) = (local, to) else { continue };
            let size = u16::try_from(question.size).unwrap_or(u16::MAX);
            let datagram = Datagram::new(Kind::Question, size, question.nonce);
            let sent = self.sockets.ask(question.layer, local, to, &datagram, question.checksum);
            trace!(peer = %key.0, %to, size, checksum = ?question.checksum, ?sent, "asked");
            self.traffic.asked += 1;
            if sent == Err(NotSent::TooLarge) {
                self.schedule.refused(*key, question.nonce, now);
            }
        }
    }

    fn take(&mut self, came: &Came, now: Instant) {
        let (from, layer) = (came.from.ip(), came.layer);
        let share = self.random.share();
        let counted = match &came.datagram {
            Some(question) if question.kind == Kind::Question => {
                let may = self.schedule.may_answer(from, layer, now, || share);
                if may && self.sockets.answer(came, question) {
                    self.traffic.answers += 1;
                }
                may
            }
            Some(Datagram { size, nonce, .. }) => {
                let is_ours = self.schedule.answered(from, layer, *nonce, u32::from(*size), now);
                self.traffic.answered += u64::from(is_ours);
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
    /// Asks and answers these from now on, and nobody else.
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
enum Turn {
    Alone,
    Ask,
    Follow,
    Take(Came),
}

/// Between attempts to open a socket, whose address may come later.
const RETRY: Duration = Duration::from_secs(2);
/// News are gathered for so long, because with many peers they never end.
const GATHER: Duration = Duration::from_millis(100);
/// After anything at all was sent or came, numbers are told within this.
const LATER: Duration = Duration::from_secs(10);
/// How many ways are looked at before what came is taken.
const AT_ONCE: usize = 16;
