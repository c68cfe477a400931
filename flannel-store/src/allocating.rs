//! A store made of any registry: which subnet a node gets, and how it keeps it.

use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use flannel_core::{
    Backoff, Lease, LeaseAttrs, LeaseEvent, NetworkConfig, NodeId, Store, StoreError, Subnet,
    SubnetLease,
};
use futures::stream::BoxStream;
use tracing::{debug, info};

use crate::registry::{ConfigText, Lifetime, Record, Registry, RegistryError, Write};

mod held;
mod plan;
mod skips;
mod watch;

use held::Held;
use plan::Decision;
use skips::Skips;

/// A [`Store`] over a [`Registry`]: one node's way to its lease and to those of its peers.
///
/// [`acquire`](Store::acquire) takes, in this order:
///
/// 1. the lease that this node's id owns, also if the node's address changed;
/// 2. a lease without an owner that has our public address: flannel's own, or a reservation. The node id is recorded with
///    it. A reservation never gets an expiry;
/// 3. a free subnet as [`flannel_core::choose`] has it, at best [`Options::hint`].
///
/// A lease that another node id owns is never taken, also not at the same public address. An own lease that does not fit the
/// network's configuration any more is removed. Subnets whose leases have lapsed are given out last.
pub struct Allocating<R> {
    registry: Arc<R>,
    node: NodeId,
    options: Options,
    /// The subnet that this handle acquired last.
    last: Mutex<Option<Subnet>>,
    counters: Arc<Counters>,
    skips: Arc<Skips>,
}

/// What a node may choose about its lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// How long a lease lasts without a renewal; 24 h as flannel's.
    pub ttl: Duration,
    /// The subnet to prefer when the registry does not know what this node had, as from its `subnet.env`.
    pub hint: Option<Subnet>,
}

impl Default for Options {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(24 * 60 * 60), hint: None }
    }
}

/// What a store handle has seen since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// How often somebody else was faster in taking a subnet.
    pub races_lost: u64,
    /// How many complete lists watchers were given.
    pub resets: u64,
    /// How often an entry was skipped because it is no lease.
    pub skipped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    races_lost: AtomicU64,
    resets: AtomicU64,
}

impl<R: Registry> Allocating<R> {
    /// The store of `registry` as `node` uses it.
    pub fn new(registry: R, node: NodeId, options: Options) -> Self {
        Self {
            registry: Arc::new(registry),
            node,
            options,
            last: Mutex::default(),
            counters: Arc::default(),
            skips: Arc::default(),
        }
    }

    /// The registry behind the store.
    pub fn registry(&self) -> &R {
        &self.registry
    }

    /// The node whose store this is.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// What has been counted so far.
    pub fn stats(&self) -> Stats {
        Stats {
            races_lost: self.counters.races_lost.load(Ordering::Relaxed),
            resets: self.counters.resets.load(Ordering::Relaxed),
            skipped: self.skips.count(),
        }
    }

    fn hint(&self) -> Option<Subnet> {
        self.last.lock().expect("nothing panics while it is locked").or(self.options.hint)
    }

    /// Decides and acts until we hold a record, which is returned; `None` if that needs a new list.
    ///
    /// Losing a race shows one record more, so that choosing again needs no new list; only a full network does.
    async fn acquire_from(
        &self,
        mut records: Vec<Record>,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        value: &str,
        hint: Option<Subnet>,
    ) -> Result<Option<Record>, StoreError> {
        for races_lost in 0..RACES_PER_LIST {
            let decision = match plan::decide(config, &records, &self.node, attrs, hint.as_ref()) {
                Ok(decision) => decision,
                Err(_) if races_lost > 0 => return Ok(None),
                Err(source) => return Err(StoreError::Full { source }),
            };
            match self.carry_out(decision, value).await {
                Ok(record) => return Ok(record),
                Err(RegistryError::Conflict { current }) => {
                    self.counters.races_lost.fetch_add(1, Ordering::Relaxed);
                    let Some(current) = current else {
                        return Ok(None);
                    };
                    debug!(subnet = current.key, "somebody else was faster, choosing again");
                    records.retain(|record| record.key != current.key);
                    records.push(*current);
                }
                Err(error) => return Err(store_error(error)),
            }
        }
        Ok(None)
    }

    /// Carries out one decision; `Err` with a conflict if the registry has changed since.
    async fn carry_out(
        &self,
        decision: Decision<'_>,
        value: &str,
    ) -> Result<Option<Record>, RegistryError> {
        let mut write = Write {
            value: value.into(),
            owner: Some(self.node.clone()),
            ttl: Some(self.options.ttl),
        };
        match decision {
            Decision::Create(subnet) => {
                self.registry.create(&subnet.to_string(), &write).await.map(Some)
            }
            Decision::Delete(record) => {
                info!(
                    subnet = record.key,
                    "our lease does not fit the network any more, removing it"
                );
                self.registry.delete(record).await.map(|()| None)
            }
            Decision::Take(record) => {
                if record.lifetime == Lifetime::Unbounded {
                    write.ttl = None;
                }
                if record.value.as_ref() == Ok(&write.value) && record.owner == write.owner {
                    self.registry.touch(record, write.ttl).await.map(Some)
                } else {
                    self.registry.update(record, &write).await.map(Some)
                }
            }
        }
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
    let ConfigText { place, text } = registry.config().await.map_err(store_error)?;
    match text {
        None => Err(StoreError::ConfigMissing { place }),
        Some(text) => text.parse().map_err(|source| StoreError::Config { place, source }),
    }
}

#[async_trait]
impl<R: Registry> Store for Allocating<R> {
    async fn config(&self) -> Result<NetworkConfig, StoreError> {
        network_config(self.registry.as_ref()).await
    }

    async fn previous(&self) -> Result<Option<Lease>, StoreError> {
        let snapshot = self.registry.list().await.map_err(store_error)?;
        let hint = self.hint();
        Ok(plan::previous(&snapshot.records, &self.node, hint.as_ref()))
    }

    async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Box<dyn SubnetLease>, StoreError> {
        let value = value_of(attrs)?;
        let config = self.config().await?;
        let hint = self.hint();
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_secs(1));
        loop {
            let snapshot = self.registry.list().await.map_err(store_error)?;
            match self.acquire_from(snapshot.records, &config, attrs, &value, hint).await? {
                Some(record) => {
                    let (registry, node) = (Arc::clone(&self.registry), self.node.clone());
                    let held = Held::new(registry, node, self.options.ttl, record)?;
                    let subnet = held.lease().subnet;
                    *self.last.lock().expect("nothing panics while it is locked") = Some(subnet);
                    return Ok(Box::new(held));
                }
                None => tokio::time::sleep(backoff.after_failure(random())).await,
            }
        }
    }

    fn watch(&self) -> BoxStream<'static, Result<LeaseEvent, StoreError>> {
        watch::stream(
            Arc::clone(&self.registry),
            Arc::clone(&self.skips),
            Arc::clone(&self.counters),
        )
    }
}

impl<R> fmt::Debug for Allocating<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocating")
            .field("node", &self.node)
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

/// A number to spread waits with. Each hasher of this kind has keys of its own, which is all the randomness that is needed.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Enough for nodes that start together; whoever loses more often looks at the whole again.
const RACES_PER_LIST: u32 = 64;
