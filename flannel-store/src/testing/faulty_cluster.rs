//! A cluster in memory whose nodes can be cut off from it.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use flannel_core::{NetworkConfig, NodeId};
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::sync::Notify;

use crate::{
    memory::{MemoryCluster, MemoryRegistry},
    registry::{Change, ConfigText, NewRecord, Record, Registry, RegistryError, Snapshot},
    registry_store::{LeaseOptions, RegistryStore},
};

/// How a node that is cut off notices.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// Its calls and watches fail at once.
    Fail,
    /// Its calls and watches hang.
    Hang,
}

/// A [`MemoryCluster`] to which each node has a link of its own, which tests cut and slow down.
#[derive(Clone, Debug)]
pub struct FaultyCluster {
    cluster: MemoryCluster,
    links: Arc<Links>,
}

/// One node's connection to a [`FaultyCluster`].
#[derive(Clone, Debug)]
pub struct FaultyRegistry {
    registry: MemoryRegistry,
    node: NodeId,
    links: Arc<Links>,
}

#[derive(Debug, Default)]
struct Links {
    links: Mutex<BTreeMap<NodeId, Link>>,
    /// Notified whenever a link changes.
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    cut: Option<Cut>,
    /// For a call there and back.
    delay: Duration,
}

/// The source of the error that a node gets which is cut off.
#[derive(Debug, thiserror::Error)]
#[error("{0} is cut off from the store")]
struct CutOff(NodeId);

impl FaultyCluster {
    /// As [`MemoryCluster::new`].
    pub fn new(config: &NetworkConfig) -> Self {
        Self { cluster: MemoryCluster::new(config), links: Arc::default() }
    }

    /// As [`MemoryCluster::with_history`].
    pub fn with_history(config: &NetworkConfig, changes: usize) -> Self {
        Self { cluster: MemoryCluster::with_history(config, changes), links: Arc::default() }
    }

    /// The store as `node` uses it, with the usual options.
    pub fn store(&self, node: NodeId) -> RegistryStore<FaultyRegistry> {
        self.store_with(node, LeaseOptions::default())
    }

    /// The store as `node` uses it.
    pub fn store_with(&self, node: NodeId, options: LeaseOptions) -> RegistryStore<FaultyRegistry> {
        RegistryStore::new(self.registry(node.clone()), node, options)
    }

    /// The registry as `node` is connected to it.
    pub fn registry(&self, node: NodeId) -> FaultyRegistry {
        FaultyRegistry { registry: self.cluster.registry(), node, links: Arc::clone(&self.links) }
    }

    /// Cuts `node` off: its calls and watches fail or hang until [`heal`](Self::heal). What was on its way to the store may
    /// have happened.
    pub fn cut(&self, node: &NodeId, cut: Cut) {
        self.links.change(node, |link| link.cut = Some(cut));
    }

    /// Makes every call and every watched change of `node` take `delay`.
    pub fn delay(&self, node: &NodeId, delay: Duration) {
        self.links.change(node, |link| link.delay = delay);
    }

    /// Connects `node` again, without delay.
    pub fn heal(&self, node: &NodeId) {
        self.links.change(node, |link| *link = Link::default());
    }
}

impl Deref for FaultyCluster {
    type Target = MemoryCluster;

    fn deref(&self) -> &MemoryCluster {
        &self.cluster
    }
}

impl Links {
    fn change(&self, node: &NodeId, change: impl FnOnce(&mut Link)) {
        let mut links = self.links.lock().expect("nothing panics while it is locked");
        change(links.entry(node.clone()).or_default());
        self.changed.notify_waiters();
    }

    fn of(&self, node: &NodeId) -> Link {
        let links = self.links.lock().expect("nothing panics while it is locked");
        links.get(node).copied().unwrap_or_default()
    }
}

impl FaultyRegistry {
    /// Makes a call: half of the delay goes by before it, half after it, and both ways may be cut.
    async fn call<T>(
        &self,
        operation: &str,
        call: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        self.pass(operation).await?;
        let result = call.await;
        self.pass(operation).await?;
        result
    }

    /// Waits until a message has gone one way.
    async fn pass(&self, operation: &str) -> Result<(), RegistryError> {
        let delay = self.links.of(&self.node).delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay / 2).await;
        }
        loop {
            let changed = self.links.changed.notified();
            match self.links.of(&self.node).cut {
                None => return Ok(()),
                Some(Cut::Fail) => return Err(self.cut_off(operation)),
                Some(Cut::Hang) => changed.await,
            }
        }
    }

    async fn follow(
        &self,
        changes: &mut BoxStream<'static, Result<Change, RegistryError>>,
    ) -> Option<Result<Change, RegistryError>> {
        loop {
            let changed = self.links.changed.notified();
            let Link { cut, delay } = self.links.of(&self.node);
            match cut {
                Some(Cut::Fail) => return Some(Err(self.cut_off("follow the leases"))),
                Some(Cut::Hang) => changed.await,
                None => tokio::select! {
                    biased;
                    () = changed => {}
                    change = changes.next() => {
                        if !delay.is_zero() {
                            tokio::time::sleep(delay).await;
                        }
                        return change;
                    }
                },
            }
        }
    }

    fn cut_off(&self, operation: &str) -> RegistryError {
        let source = CutOff(self.node.clone()).into();
        RegistryError::Unavailable { operation: operation.into(), source }
    }
}

#[async_trait]
impl Registry for FaultyRegistry {
    async fn config(&self) -> Result<ConfigText, RegistryError> {
        self.call("read the network config", self.registry.config()).await
    }

    async fn config_changed(&self, seen: &ConfigText) -> Result<ConfigText, RegistryError> {
        loop {
            let changed = self.links.changed.notified();
            self.pass("follow the network config").await?;
            tokio::select! {
                biased;
                () = changed => {}
                config = self.registry.config_changed(seen) => return config,
            }
        }
    }

    async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
        self.call("write the network config", self.registry.set_config(was, text)).await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        self.call("list the leases", self.registry.list()).await
    }

    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError> {
        self.call(&format!("create {key}"), self.registry.create(key, write)).await
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        self.call(&format!("update {}", was.key), self.registry.update(was, write)).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        self.call(&format!("renew {}", was.key), self.registry.touch(was, ttl)).await
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        self.call(&format!("delete {}", was.key), self.registry.delete(was)).await
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        let state = (self.clone(), self.registry.watch(since));
        stream::unfold(state, async |(registry, mut changes)| {
            let change = registry.follow(&mut changes).await?;
            Some((change, (registry, changes)))
        })
        .boxed()
    }
}
