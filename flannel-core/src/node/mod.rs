//! One node of a network: the only event loop, which drives a store and a backend.

mod config_watch;
mod driver;
mod failure;
mod lease_keeper;
mod operation;
mod outage_log;
mod pings;
mod removals;
mod session;
mod status;

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

use pings::Pings;

use crate::{
    backend::{Backend, BackendError, Network},
    lease::Lease,
    peers::Peers,
    report::Transport,
    store::{Store, StoreError, SubnetLease},
    subnet::Subnet,
};

pub use status::{Repair, Status, Totals};

/// A node: it takes a subnet, brings up the data path, and keeps it matching the leases of its peers.
///
/// Nothing happens until [`run`](Self::run) or [`run_until`](Self::run_until) is polled. Dropping that future stops the node
/// at once and leaves lease and data path as they are, so that a successor goes on without a lost packet.
///
/// What a retry can fix is retried for as long as it takes, at growing intervals, and shown in [`Status`]. Only what somebody
/// has to correct ends the node.
#[derive(Debug)]
pub struct Node {
    store: Arc<dyn Store>,
    backend: Arc<dyn Backend>,
    options: NodeOptions,
    status: watch::Sender<Status>,
    requests: (mpsc::Sender<Request>, mpsc::Receiver<Request>),
    pings: (mpsc::Sender<oneshot::Sender<()>>, Pings),
}

/// How a node behaves where there is a choice.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The node's name in log spans; whoever runs several nodes in one process tells them apart by it.
    pub name: Option<String>,
    /// The network's name in log spans; its address blocks unless set.
    pub network: Option<String>,
    /// The longest that one call of the store or the backend may take before it counts as failed. 30 s: well above what a
    /// loaded store or a sync of 100,000 peers needs.
    pub deadline: Duration,
    /// What to do when the lease is lost to another owner or deleted.
    pub on_lease_loss: OnLeaseLoss,
    /// How long a peer is served after its lease has gone, unless another takes its place. 5 s: a node whose lease was deleted by
    /// mistake has it again in a tenth of a second, or in two where machines and store have too much to do, and its pods lose no packet
    /// meanwhile. A node that has gone for good does not answer either way.
    pub removal_grace: Duration,
    /// The same if most peers have gone at once, or together with the network's configuration, or were missing when the leases were
    /// listed anew: a store that was emptied or restored from a backup. 2 min: longer than any node that runs needs to have its lease
    /// again.
    pub bulk_removal_grace: Duration,
    /// Who knows whether peers still answer. One that went together with most others and still answers is served on.
    pub liveness: Option<Arc<dyn Liveness>>,
    /// How much of its life a lease has at least when it is renewed; 1 h as flannel's. It is renewed after a third of its life if
    /// that is earlier, and always if it does not last for so long.
    pub renew_margin: Duration,
    /// The longest wait between attempts. 30 s, so that a store that was away for hours is noticed within half a minute.
    pub retry_longest: Duration,
    /// The wait after a first failure. 200 ms, so that a short hiccup is hardly noticed.
    pub retry_shortest: Duration,
    /// Where the node's random numbers start; they only spread its waits. Simulations set it to repeat a run.
    pub seed: u64,
}

/// Knows which peers are alive, from whatever goes on between the nodes.
pub trait Liveness: std::fmt::Debug + Send + Sync {
    /// Whether `peer` was heard of lately. Must not block.
    fn answers(&self, peer: &Lease) -> bool;
}

/// What a node does when its lease is lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnLeaseLoss {
    /// [`Node::run`] ends with [`NodeError::LeaseLost`]; the data path stays.
    Exit,
    /// Take a lease anew, the same subnet if it is free, and go on.
    #[default]
    Reacquire,
}

/// A view of a running node, for whoever embeds it. Clones see the same node.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    status: watch::Receiver<Status>,
    requests: mpsc::Sender<Request>,
    pings: mpsc::Sender<oneshot::Sender<()>>,
}

/// What is left of a node that was asked to stop: the data path is up, and the lease is held until it expires.
///
/// Dropping both parts keeps it so.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Stopped {
    /// The lease, to [`release`](SubnetLease::release) it; `None` if the node had none or the store did not answer in time.
    pub lease: Option<Box<dyn SubnetLease>>,
    /// The data path, to [`teardown`](Network::teardown) it; `None` if it was not up yet.
    pub network: Option<Box<dyn Network>>,
}

/// Why a node cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The backend cannot work with this configuration or on this machine.
    #[error("the data path cannot be brought up")]
    Backend(#[source] BackendError),
    /// The lease was lost, and the node was told to end then.
    #[error("the lease of {subnet} was lost")]
    LeaseLost {
        /// The subnet that was ours.
        subnet: Subnet,
        /// How it was lost.
        #[source]
        source: StoreError,
    },
    /// The store's configuration cannot be used, or the store refuses us.
    #[error("the store cannot be used")]
    Store(#[source] StoreError),
}

/// What a handle asks the loop, with where to send the answer.
#[derive(Debug)]
enum Request {
    Peers(oneshot::Sender<Arc<Peers>>),
    Transports(oneshot::Sender<Vec<(Subnet, Transport)>>),
}

impl Node {
    /// A node that keeps its lease in `store` and carries packets with `backend`.
    pub fn new(store: impl Store, backend: impl Backend) -> Self {
        Self::from_parts(Arc::new(store), Arc::new(backend), NodeOptions::default())
    }

    /// A node made of parts that were chosen at run time.
    pub fn from_parts(
        store: Arc<dyn Store>,
        backend: Arc<dyn Backend>,
        options: NodeOptions,
    ) -> Self {
        let status = watch::Sender::new(Status::default());
        let (requests, pings) = (mpsc::channel(REQUESTS), Pings::new());
        Self { store, backend, options, status, requests, pings }
    }

    /// A view of this node that stays useful while it runs.
    pub fn handle(&self) -> NodeHandle {
        let (requests, pings) = (self.requests.0.clone(), self.pings.0.clone());
        NodeHandle { status: self.status.subscribe(), requests, pings }
    }

    /// Runs for ever.
    ///
    /// # Errors
    ///
    /// [`NodeError`], if somebody has to correct something first. The data path is left as it is.
    ///
    /// # Cancel safety
    ///
    /// Dropping it stops the node; lease and data path stay. A write that was under way may or may not have happened, and the
    /// next run of a node puts that right.
    pub async fn run(self) -> Result<Infallible, NodeError> {
        self.run_until(std::future::pending()).await?;
        unreachable!("a node ends without an error only if it is asked to stop")
    }

    /// Runs until `stop` resolves, then finishes what is under way for less than a second.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// As [`run`](Self::run).
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<Stopped, NodeError> {
        let Self { store, backend, options, status, requests: (_, requests), pings: (_, pings) } =
            self;
        driver::Driver::new(store, backend, options, status, requests).run(stop, pings).await
    }
}

impl Default for NodeOptions {
    fn default() -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        Self {
            name: None,
            network: None,
            deadline: Duration::from_secs(30),
            on_lease_loss: OnLeaseLoss::default(),
            renew_margin: Duration::from_secs(60 * 60),
            removal_grace: Duration::from_secs(5),
            bulk_removal_grace: Duration::from_secs(120),
            liveness: None,
            retry_longest: Duration::from_secs(30),
            retry_shortest: Duration::from_millis(200),
            seed: RandomState::new().build_hasher().finish(),
        }
    }
}

impl NodeHandle {
    /// The node as it is now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until the status satisfies `condition`, and returns it; `None` if the node ended before.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn wait_for(&mut self, condition: impl FnMut(&Status) -> bool) -> Option<Status> {
        Some(self.status.wait_for(condition).await.ok()?.clone())
    }

    /// Waits until the status is another than this handle has seen; `None` if the node ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn changed(&mut self) -> Option<Status> {
        self.status.changed().await.ok()?;
        Some(self.status.borrow_and_update().clone())
    }

    /// Waits for the node's loop to answer: it does at once wherever it waits, whatever for. `None` if the node ended.
    ///
    /// A supervisor that gets no answer within some seconds has a node that hangs.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn ping(&self) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        self.pings.send(reply).await.ok()?;
        answer.await.ok()
    }

    /// All peers as the node knows them; waits for the first snapshot. `None` if the node ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn peers(&self) -> Option<Arc<Peers>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Peers(reply)).await.ok()?;
        answer.await.ok()
    }

    /// How packets reach each peer that is served, in the order of their subnets, where the backend tells; waits for the first
    /// snapshot and for a sync under way. `None` if the node ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub async fn transports(&self) -> Option<Vec<(Subnet, Transport)>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Transports(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// How many questions may wait for the node's next turn: more than anybody asks at once.
const REQUESTS: usize = 16;

#[cfg(test)]
mod tests;
