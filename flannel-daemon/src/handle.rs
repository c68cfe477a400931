//! What this process knows of its node, for whoever asks: health checks, metrics, operators.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use flannel_core::{Backend, NodeHandle, NodeId, Notice, Status, SubnetEnv};
use flannel_netlink::Namespace;
use tokio::{
    sync::{Notify, OwnedMutexGuard, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    journal::Journal,
    metrics::{self, Metrics},
    not_ready::NotReady,
    notices,
    path_monitor::Probed,
    readiness::{File, Readiness, ReadinessReport, View, judge},
    status::{self, StatusDocument},
    store_metrics::StoreTimes,
    subnet_file,
};

/// A daemon as seen from outside. Clones see the same one.
#[derive(Clone, Debug)]
pub struct DaemonHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    started: SystemTime,
    subnet_file: PathBuf,
    ip_masq: bool,
    times: StoreTimes,
    state: Mutex<State>,
    /// There is a node now.
    appeared: Notify,
    /// Whoever explains a path, and when the last one was.
    explaining: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

#[derive(Debug, Default)]
struct State {
    node: Option<(Facts, NodeHandle)>,
    /// What is needed before there can be a node and is not to be had, with the reason.
    lacking: BTreeMap<&'static str, String>,
    journal: Journal,
    /// What is known of the ways to peers, if they are asked.
    probed: Option<Probed>,
    not_ready: NotReady,
    /// Whether whoever reaches the health port may ask for explanations.
    explains_to_network: bool,
    /// The host's network namespace, if it is not that of the process.
    namespace: Option<Namespace>,
}

/// The right to explain a path. The next one is given some time after it was dropped.
pub(crate) struct Turn(OwnedMutexGuard<Option<Instant>>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0 = Some(Instant::now());
    }
}

/// What does not change while a node runs.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) id: NodeId,
    /// The store, for people.
    pub(crate) store: String,
    pub(crate) backend: Arc<dyn Backend>,
}

/// Why a node does not count as alive.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Dead {
    Ended,
    Hanging,
}

impl DaemonHandle {
    pub(crate) fn new(subnet_file: &Path, ip_masq: bool) -> Self {
        Self(Arc::new(Shared {
            started: SystemTime::now(),
            subnet_file: subnet_file.to_owned(),
            ip_masq,
            times: StoreTimes::default(),
            state: Mutex::default(),
            appeared: Notify::new(),
            explaining: Arc::default(),
        }))
    }

    /// How paths are explained, and to whom.
    pub(crate) fn explains(&self, to_network: bool, namespace: Option<Namespace>) {
        let mut state = self.state();
        (state.explains_to_network, state.namespace) = (to_network, namespace);
    }

    pub(crate) fn explains_to_network(&self) -> bool {
        self.state().explains_to_network
    }

    pub(crate) fn namespace(&self) -> Option<Namespace> {
        self.state().namespace.clone()
    }

    /// The right to explain a path, which one at a time has; `None` to whoever comes too soon.
    pub(crate) fn turn_to_explain(&self) -> Option<Turn> {
        let last = Arc::clone(&self.0.explaining).try_lock_owned().ok()?;
        let is_soon = last.is_some_and(|last| last.elapsed() < EXPLAIN_PAUSE);
        (!is_soon).then(|| Turn(last))
    }

    /// When this process began to work.
    pub(crate) fn started(&self) -> SystemTime {
        self.0.started
    }

    /// How long the store takes to answer.
    pub(crate) fn store_metrics(&self) -> &StoreTimes {
        &self.0.times
    }

    /// Remembers that `what` is not to be had yet, or is at last.
    pub(crate) fn lack(&self, what: &'static str, reason: Option<String>, store_is_away: bool) {
        let mut state = self.state();
        let (at, now) = (SystemTime::now(), Instant::now());
        state.journal.lack(what, reason.as_deref(), store_is_away, at, now);
        match reason {
            Some(reason) => drop(state.lacking.insert(what, reason)),
            None => drop(state.lacking.remove(what)),
        }
    }

    /// There is a node now.
    pub(crate) fn runs(&self, facts: Facts, handle: NodeHandle) {
        self.state().node = Some((facts, handle));
        self.0.appeared.notify_waiters();
    }

    /// This is known of the ways to peers now.
    pub(crate) fn probed(&self, probed: Probed) {
        self.state().probed = Some(probed);
    }

    /// What is known of the ways to peers; `None` if they are not asked.
    pub(crate) fn probes(&self) -> Option<Probed> {
        self.state().probed.clone()
    }

    /// Writes the journal until the node ends.
    pub(crate) async fn follow(self) {
        let Some(mut handle) = self.node() else { return };
        let mut status = handle.status();
        loop {
            self.state().journal.follow(&status, SystemTime::now(), Instant::now());
            let Some(changed) = handle.changed().await else { return };
            status = changed;
        }
    }

    pub(crate) fn facts(&self) -> Option<Facts> {
        self.state().node.as_ref().map(|(facts, _)| facts.clone())
    }

    /// The node; `None` until there is one.
    pub fn node(&self) -> Option<NodeHandle> {
        self.state().node.as_ref().map(|(_, handle)| handle.clone())
    }

    /// Waits until there is a node. Until then [`readiness`](Self::readiness) says what is missing.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn wait_for_node(&self) -> NodeHandle {
        loop {
            let appeared = self.0.appeared.notified();
            if let Some(node) = self.node() {
                return node;
            }
            appeared.await;
        }
    }

    pub(crate) fn status(&self) -> Option<Status> {
        self.node().map(|handle| handle.status())
    }

    pub(crate) fn journal(&self) -> Journal {
        self.state().journal.clone()
    }

    /// What the host should be told, if the node can serve pods with that.
    pub(crate) fn env(&self, status: &Status) -> Option<SubnetEnv> {
        let lease = status.lease.as_ref().filter(|_| status.is_ready())?;
        let config = status.config.as_ref()?;
        Some(SubnetEnv::new(config, &lease.subnet, status.mtu?, self.0.ip_masq))
    }

    pub(crate) fn subnet_file(&self) -> &Path {
        &self.0.subnet_file
    }

    /// Whether the host is told what it should be told.
    pub(crate) fn file(&self, env: Option<&SubnetEnv>) -> File {
        match (env, subnet_file::text(&self.0.subnet_file)) {
            (None, _) => File::NotDue,
            (Some(_), None) => File::Missing,
            (Some(env), Some(text)) if env.to_string() == text => File::Exact,
            (Some(_), Some(_)) => File::Different,
        }
    }

    /// The metrics, which print themselves in Prometheus' text format.
    pub fn metrics(&self) -> Metrics {
        metrics::collect(&metrics::Snapshot::take(self, SystemTime::now(), Instant::now()))
    }

    /// All that operators may want to know of the node.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn status_document(&self) -> StatusDocument {
        status::document(self).await
    }

    /// Whether pods can be served, and what is missing.
    pub fn readiness(&self) -> Readiness {
        let status = self.status();
        let env = status.as_ref().and_then(|status| self.env(status));
        let file = self.file(env.as_ref());
        let mut state = self.state();
        let readiness = judge(&View { lacking: &state.lacking, status: status.as_ref(), file });
        state.not_ready.note(readiness.is_ready(), Instant::now());
        readiness
    }

    /// The same for programs of this host, which ask again and again.
    pub(crate) fn readiness_report(&self) -> ReadinessReport {
        let readiness = self.readiness();
        let since = self.state().not_ready.since();
        ReadinessReport {
            ready: readiness.is_ready(),
            not_ready_seconds: since.map(|since| since.elapsed().as_secs()),
            readiness,
        }
    }

    /// Tells whether pods can be served, for as long as somebody wants to know.
    pub(crate) async fn watch_readiness(self, ready: watch::Sender<bool>) {
        self.poll(ready, |it| it.readiness().is_ready()).await;
    }

    /// Tells what the cluster's operators should see of the node, for as long as somebody wants to know.
    pub(crate) async fn watch_notices(self, notices: watch::Sender<Vec<Notice>>) {
        self.poll(notices, |it| notices::of(&it.readiness(), it.status().as_ref())).await;
    }

    /// Sends what `read` returns whenever it has changed, for as long as somebody wants to know.
    async fn poll<T: PartialEq>(&self, sender: watch::Sender<T>, read: impl Fn(&Self) -> T) {
        while !sender.is_closed() {
            let present = read(self);
            sender.send_if_modified(|known| {
                let has_changed = *known != present;
                *known = present;
                has_changed
            });
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether the node's loop turns. Before there is a node, answering at all is the proof.
    pub(crate) async fn alive(&self) -> Result<(), Dead> {
        let Some(handle) = self.node() else { return Ok(()) };
        match timeout(PATIENCE, handle.ping()).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(Dead::Ended),
            Err(_) => Err(Dead::Hanging),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a loop may take to answer. It does so within a millisecond even with thousands of peers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Between two explanations.
const EXPLAIN_PAUSE: Duration = Duration::from_millis(500);

/// Between two looks at whether the node is ready.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
