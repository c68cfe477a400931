//! A cluster's leases in this process's memory: for tests, simulations, and clusters of one process.

use std::sync::{Arc, Mutex, MutexGuard};

use flannel_core::{NetworkConfig, NodeId};
use tokio::sync::Notify;

use crate::{
    registry::{NewRecord, Record},
    registry_store::{LeaseOptions, RegistryStore},
};

mod cluster_state;
mod memory_registry;

pub use memory_registry::MemoryRegistry;

use cluster_state::State;

/// The leases of one network, shared by all that clone it.
///
/// Time is tokio's, so that tests with paused time control expiry.
///
/// # Examples
///
/// ```
/// use flannel_core::{LeaseAttrs, Store};
/// use flannel_store::MemoryCluster;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let cluster = MemoryCluster::new(&r#"{"Network":"10.244.0.0/16"}"#.parse()?);
/// let one = cluster.store("node-1".parse()?).acquire(&LeaseAttrs::default()).await?;
/// let two = cluster.store("node-2".parse()?).acquire(&LeaseAttrs::default()).await?;
/// assert_ne!(one.lease().subnet, two.lease().subnet);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct MemoryCluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rung whenever something happens that a waiting node may want to know. It wakes in the order of waiting, so that a
    /// simulation can be repeated; a watch channel wakes in random order.
    bell: Notify,
}

impl MemoryCluster {
    /// An empty cluster with the network of `config`, which remembers the last 1,024 changes for watchers that fall behind.
    pub fn new(config: &NetworkConfig) -> Self {
        Self::with_history(config, 1024)
    }

    /// As [`new`](Self::new), remembering `changes` changes: a watcher that falls further behind gets a reset.
    pub fn with_history(config: &NetworkConfig, changes: usize) -> Self {
        let text = serde_json::to_string(config).expect("a network config is valid JSON");
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new(text, changes)),
                bell: Notify::new(),
            }),
        }
    }

    /// The store as `node` uses it, with the usual options.
    pub fn store(&self, node: NodeId) -> MemoryStore {
        self.store_with(node, LeaseOptions::default())
    }

    /// The store as `node` uses it.
    pub fn store_with(&self, node: NodeId, options: LeaseOptions) -> MemoryStore {
        RegistryStore::new(self.registry(), node, options)
    }

    /// The registry behind the stores.
    pub fn registry(&self) -> MemoryRegistry {
        MemoryRegistry::new(Arc::clone(&self.shared))
    }

    /// Everything that is stored now, in the order of keys.
    pub fn records(&self) -> Vec<Record> {
        self.shared.work(|state| state.records())
    }

    /// Writes a record past all checks, as an operator does.
    pub fn put(&self, key: &str, write: &NewRecord) {
        self.shared.work(|state| {
            state.write(key, write);
        });
    }

    /// Removes a record past all checks, as an operator does; whether there was one.
    pub fn remove(&self, key: &str) -> bool {
        self.shared.work(|state| state.remove(key))
    }

    /// Replaces the network's configuration; `None` removes it. Any text is taken.
    pub fn set_config(&self, text: Option<&str>) {
        self.shared.work(|state| (state.config, state.changed) = (text.map(Into::into), true));
    }
}

/// What time, accidents and readers that leave do to a cluster.
#[cfg(feature = "testing")]
impl MemoryCluster {
    /// Lets a record's time be over now; whether there was one that expires.
    pub fn expire(&self, key: &str) -> bool {
        self.shared.work(|state| state.expire(key))
    }

    /// Forgets all remembered changes, so that every watcher that has not seen them gets a reset.
    pub fn compact(&self) {
        self.shared.work(State::compact);
    }

    /// How many watches are open now.
    pub fn open_watches(&self) -> usize {
        self.shared.lock().watches
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is locked")
    }

    /// Works on the state as of now, and wakes all who wait if something changed.
    fn work<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        state.sweep();
        let result = work(&mut state);
        if std::mem::take(&mut state.changed) {
            self.bell.notify_waiters();
        }
        result
    }
}

/// One node's store in a [`MemoryCluster`].
pub type MemoryStore = RegistryStore<MemoryRegistry>;
