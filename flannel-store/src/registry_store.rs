//! A store made of any registry: which subnet a node gets, and how it keeps it.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use flannel_core::{
    Backoff, Lease, LeaseAttrs, LeaseEvent, NetworkConfig, NodeId, SplitMix64, Store, StoreError,
    Subnet, SubnetLease,
};
use futures::{StreamExt, stream, stream::BoxStream};
use tracing::{debug, info};

use crate::registry::{ConfigText, Record, Registry, RegistryError, Snapshot};

mod challenge;
mod held_lease;
mod lease_events;
#[cfg(test)]
mod model;
mod overlaps;
mod perform;
mod plan;
mod protocol;
mod recent_list;
mod record_errors;

use challenge::{Challenged, challenge, is_doubtful};
use held_lease::Held;
use overlaps::Overlaps;
use perform::perform;
use protocol::{Acquiring, Answer, Candidate, Next, Request};
use recent_list::RecentList;
use record_errors::RecordErrors;

/// A [`Store`] over a [`Registry`]: one node's way to its lease and to those of its peers.
///
/// [`acquire`](Store::acquire) takes, in this order:
///
/// 1. the lease that this node's id owns, also if the node's address changed;
/// 2. a lease without an owner that has our public address: flannel's own, or a reservation. The node id is recorded with
///    it. A reservation never gets an expiry;
/// 3. a free subnet as [`flannel_core::choose`] has it, at best [`LeaseOptions::hint`].
///
/// 4. before that, a lease that another node id owns and that has our public address, if nobody answers for it: this node may
///    have lost its id, and an address belongs to one host.
///
/// A lease that another node id owns is not taken otherwise. An own lease that does not fit the network's configuration any
/// more is removed, unless it is a reservation. Subnets whose leases have lapsed are given out last.
///
/// # Overlapping leases
///
/// No two stores take leases that share an address, whatever the configurations that they have read: [`Registry::create`]
/// sees to that. Programs that do not know of it, such as flanneld, and restored backups can make leases that overlap one
/// that is held. The holder learns of it by its [`watch`](Store::watch): a lease without an owner stays, else a reservation,
/// else the older lease. The holder of the other one removes it, reports [`StoreError::Revoked`] and takes another subnet.
///
/// A start reads all leases once: [`previous`](Store::previous), [`acquire`](Store::acquire) and the first
/// [`watch`](Store::watch) share a list, if they follow each other within a second. The watch tells of everything since.
///
/// # Fencing
///
/// A lease is created only if nothing is at its key, and written, renewed and removed only if it is still what this node wrote
/// last. Taking an own lease after a restart writes it anew, so that what the node asked for before the restart comes too late.
/// With that, and on the conditions that [`Store`] names for clocks, no two nodes trust their lease of one subnet, whichever
/// messages are lost, late or doubled and whichever nodes stop. The tests of this crate search all ways in which that could fail
/// for up to four nodes and three subnets.
///
/// Two processes with the same node id are one node to the protocol. So before a node takes a lease that may be another's, it
/// writes that lease as it is, once, and waits for three seconds: a holder that lives writes it anew. That is done where the
/// lease has our id and another address (a machine was cloned), our address and another id (the id was lost), or where both are
/// our address. The last two are not asked about if [`LeaseOptions::hint`] says that this node had the subnet. If there is an answer, acquiring fails with
/// [`StoreError::NodeIdInUse`], or takes another subnet where the ids differ. Two processes with one id and one address are
/// not told apart, unless the id is the address. A holder that cannot reach the store cannot answer: do not give its address
/// to another host.
pub struct RegistryStore<R> {
    shared: Arc<Shared<R>>,
    options: LeaseOptions,
    /// The subnet that this handle acquired last.
    last: Mutex<Option<Subnet>>,
    recent: RecentList,
}

/// What a store has in common with its watches and leases.
#[derive(Debug)]
struct Shared<R> {
    registry: Arc<R>,
    node: NodeId,
    overlaps: Overlaps,
    record_errors: RecordErrors,
    races_lost: AtomicU64,
    resets: AtomicU64,
    /// Seeded by the node's name: nodes differ in their waits, and a simulation can be repeated.
    random: Mutex<SplitMix64>,
}

/// What a node may choose about its lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LeaseOptions {
    /// How long a lease lasts without a renewal; 24 h as flannel's.
    pub ttl: Duration,
    /// The subnet to prefer when the registry does not know what this node had, as from its `subnet.env`.
    pub hint: Option<Subnet>,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(24 * 60 * 60), hint: None }
    }
}

/// What a store handle has seen since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct StoreStats {
    /// How often somebody else was faster in taking a subnet.
    pub races_lost: u64,
    /// How many complete lists watchers were given.
    pub resets: u64,
    /// How often an entry was skipped because it is no lease.
    pub skipped: u64,
}

impl<R> Shared<R> {
    fn random(&self) -> u64 {
        self.random.lock().expect("nothing panics while it is locked").next_u64()
    }
}

impl<R: Registry> RegistryStore<R> {
    /// The store of `registry` as `node` uses it.
    pub fn new(registry: R, node: NodeId, options: LeaseOptions) -> Self {
        let shared = Shared {
            registry: Arc::new(registry),
            random: Mutex::new(SplitMix64::new(node.spread() as u64)),
            node,
            overlaps: Overlaps::default(),
            record_errors: RecordErrors::default(),
            races_lost: AtomicU64::new(0),
            resets: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
            options,
            last: Mutex::default(),
            recent: RecentList::default(),
        }
    }

    /// The registry behind the store.
    pub fn registry(&self) -> &R {
        &self.shared.registry
    }

    /// The node whose store this is.
    pub fn node(&self) -> &NodeId {
        &self.shared.node
    }

    /// What has been counted so far.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            races_lost: self.shared.races_lost.load(Ordering::Relaxed),
            resets: self.shared.resets.load(Ordering::Relaxed),
            skipped: self.shared.record_errors.count(),
        }
    }

    fn hint(&self) -> Option<Subnet> {
        self.last.lock().expect("nothing panics while it is locked").or(self.options.hint)
    }
}

/// Reads the network's configuration from a registry: for who needs it before there is a node.
///
/// # Errors
///
/// As [`Store::config`].
///
/// # Cancel safety
///
/// Reads only.
pub async fn network_config(
    registry: &(impl Registry + ?Sized),
) -> Result<NetworkConfig, StoreError> {
    parse_config(registry.config().await.map_err(store_error)?)
}

/// Follows the network's configuration in a registry, beginning with what it is now: for who needs it before there is a node.
///
/// As [`Store::watch_config`].
pub fn watch_network_config<R: Registry + ?Sized>(
    registry: Arc<R>,
) -> BoxStream<'static, Result<NetworkConfig, StoreError>> {
    let next = async |(registry, seen): (Arc<R>, Option<ConfigText>)| {
        let text = match &seen {
            None => registry.config().await,
            Some(seen) => registry.config_changed(seen).await,
        };
        Some(match text {
            Ok(text) => (parse_config(text.clone()), (registry, Some(text))),
            // The first thing that is read after an outage is told, also if nothing has changed: it says that the outage is over.
            Err(error) => (Err(store_error(error)), (registry, None)),
        })
    };
    stream::unfold((registry, None), next).boxed()
}

fn parse_config(ConfigText { place, text }: ConfigText) -> Result<NetworkConfig, StoreError> {
    match text {
        None => Err(StoreError::ConfigMissing { place }),
        Some(text) => text.parse().map_err(|source| StoreError::Config { place, source }),
    }
}

#[async_trait]
impl<R: Registry> Store for RegistryStore<R> {
    async fn config(&self) -> Result<NetworkConfig, StoreError> {
        network_config(self.shared.registry.as_ref()).await
    }

    async fn previous(&self) -> Result<Option<Lease>, StoreError> {
        let snapshot = self.shared.registry.list().await.map_err(store_error)?;
        let hint = self.hint();
        let previous = plan::previous(&snapshot.records, &self.shared.node, hint.as_ref());
        self.recent.keep(snapshot);
        Ok(previous)
    }

    async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Box<dyn SubnetLease>, StoreError> {
        let value = value_of(attrs)?;
        let config = self.config().await?;
        let candidate = Candidate {
            config: &config,
            node: &self.shared.node,
            attrs,
            value: &value,
            ttl: self.options.ttl,
            hint: self.hint(),
        };
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_secs(1));
        let (mut acquiring, mut request) = (Acquiring::default(), Request::List);
        // What nobody but this node holds, although its address is another.
        let mut alone = None;
        // What was listed a moment ago serves: whatever is written is compared with what is there then.
        let mut recent = self.recent.take();
        let mut revision = 0;
        let mut reason = String::new();
        // This process may have lost it to another node since.
        let at_start = self.last.lock().expect("nothing panics while it is locked").is_none();
        let held_before = |record: &Record| {
            at_start && self.options.hint.is_some_and(|hint| record.subnet() == Some(hint))
        };
        loop {
            if let Request::Delete(record) = &request {
                let subnet = &record.key;
                info!(subnet, "our lease does not fit the network any more, removing it");
            }
            if let Request::Update { was, .. } = &mut request
                && alone.as_ref() != Some(was)
                && is_doubtful(was, &self.shared.node, attrs, held_before(was))
            {
                match challenge(self.shared.registry.as_ref(), was, self.options.ttl).await? {
                    Challenged::Alone(now) => *was = alone.insert(now).clone(),
                    Challenged::Answered(now) if now.owner.as_ref() != Some(&self.shared.node) => {
                        acquiring.in_use.push(now.key);
                        request = Request::List;
                        continue;
                    }
                    Challenged::Answered(now) => {
                        let address = now.lease().ok().and_then(|lease| lease.attrs.address());
                        return Err(StoreError::NodeIdInUse {
                            node: self.shared.node.clone(),
                            address,
                        });
                    }
                    Challenged::Changed => {
                        request = Request::List;
                        continue;
                    }
                }
            }
            if let Request::Create { key, .. } | Request::Update { was: Record { key, .. }, .. } =
                &request
            {
                self.shared.overlaps.look_out_for(key.parse().ok());
                reason = plan::reason(&request, &candidate, &acquiring.records);
            }
            let was_recent = recent.is_some();
            let answer = match (&request, recent.take()) {
                (Request::List, known) => {
                    let snapshot = match known {
                        Some(snapshot) => snapshot,
                        None => self.shared.registry.list().await.map_err(store_error)?,
                    };
                    revision = snapshot.revision;
                    Answer::Listed(snapshot.records)
                }
                (request, _) => perform(self.shared.registry.as_ref(), request).await?,
            };
            if let Answer::Conflict(current) = &answer {
                self.shared.races_lost.fetch_add(1, Ordering::Relaxed);
                let subnet = current.as_ref().map(|record| &record.key);
                debug!(subnet, "somebody else was faster, choosing again");
            }
            request = match acquiring.answered(&candidate, answer) {
                Next::Ask(request) => request,
                // Something may have become free since.
                Next::Full(_) if was_recent => Request::List,
                Next::Full(source) => return Err(StoreError::Full { source }),
                Next::Held(record) => {
                    let mut records = acquiring.records;
                    records.retain(|other| other.key != record.key);
                    records.push(record.clone());
                    self.recent.keep(Snapshot { records, revision });
                    let held = Held::new(Arc::clone(&self.shared), self.options.ttl, record)?;
                    let subnet = held.lease().subnet;
                    info!(%subnet, reason, "subnet chosen");
                    *self.last.lock().expect("nothing panics while it is locked") = Some(subnet);
                    return Ok(Box::new(held));
                }
                Next::ListAnew => {
                    tokio::time::sleep(backoff.after_failure(self.shared.random())).await;
                    Request::List
                }
            };
        }
    }

    fn watch(&self) -> BoxStream<'static, Result<LeaseEvent, StoreError>> {
        lease_events::stream(self.recent.take_for_good(), Arc::clone(&self.shared))
    }

    fn watch_config(&self) -> BoxStream<'static, Result<NetworkConfig, StoreError>> {
        watch_network_config(Arc::clone(&self.shared.registry))
    }
}

impl<R> fmt::Debug for RegistryStore<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryStore")
            .field("node", &self.shared.node)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The text to write for `attrs`.
fn value_of(attrs: &LeaseAttrs) -> Result<String, StoreError> {
    let value = attrs.to_string();
    match value.parse::<LeaseAttrs>() {
        Ok(_) => Ok(value),
        Err(source) => Err(StoreError::Denied {
            operation: "publish a lease that nobody could read".into(),
            source: source.into(),
        }),
    }
}

/// A registry's error as its store has it. A conflict is for the caller to handle before.
pub(crate) fn store_error(error: RegistryError) -> StoreError {
    match error {
        RegistryError::Denied { operation, source } => StoreError::Denied { operation, source },
        RegistryError::Unavailable { operation, source } => {
            StoreError::Unavailable { operation, source }
        }
        RegistryError::Compacted { .. }
        | RegistryError::ConfigConflict
        | RegistryError::Conflict { .. } => StoreError::Unavailable {
            operation: "follow the changes of others".into(),
            source: error.into(),
        },
    }
}
