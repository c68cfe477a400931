//! One node's connection to a cluster in memory.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flannel_core::NodeId;
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::Instant;

use crate::{
    memory::{
        Shared,
        cluster_state::State,
        link::{Cut, CutOff},
    },
    registry::{Change, ConfigText, NewRecord, Record, Registry, RegistryError, Snapshot},
};

/// One node's connection to a [`MemoryCluster`](crate::MemoryCluster).
#[derive(Clone, Debug)]
pub struct MemoryRegistry {
    shared: Arc<Shared>,
    node: NodeId,
}

impl MemoryRegistry {
    pub(super) fn new(shared: Arc<Shared>, node: NodeId) -> Self {
        Self { shared, node }
    }

    /// Does `work` on the cluster's side of the link.
    async fn call<T>(
        &self,
        operation: &str,
        work: impl FnOnce(&mut State) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        // No real store answers at once, and code that relies on it would only pass here.
        tokio::task::yield_now().await;
        self.pass(operation).await?;
        let result = self.shared.work(work);
        self.pass(operation).await?;
        result
    }

    /// Waits until a message has gone one way over the link.
    async fn pass(&self, operation: &str) -> Result<(), RegistryError> {
        let delay = self.shared.lock().link_of(&self.node).delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay / 2).await;
        }
        loop {
            let ring = self.shared.bell.notified();
            match self.shared.lock().link_of(&self.node).cut {
                None => return Ok(()),
                Some(Cut::Fail) => return Err(cut_off(&self.node, operation)),
                Some(Cut::Hang) => {}
            }
            ring.await;
        }
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn config(&self) -> Result<ConfigText, RegistryError> {
        let read = |state: &mut State| {
            Ok(ConfigText { place: "memory".into(), text: state.config.clone() })
        };
        self.call("read the network config", read).await
    }

    async fn config_changed(&self, seen: &ConfigText) -> Result<ConfigText, RegistryError> {
        loop {
            let ring = self.shared.bell.notified();
            let config = self.config().await?;
            if config != *seen {
                return Ok(config);
            }
            ring.await;
        }
    }

    async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
        let set = |state: &mut State| {
            if state.config != was.text {
                return Err(RegistryError::ConfigConflict);
            }
            state.config = Some(text.into());
            state.changed = true;
            Ok(())
        };
        self.call("write the network config", set).await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        let read =
            |state: &mut State| Ok(Snapshot { records: state.records(), revision: state.revision });
        self.call("list the leases", read).await
    }

    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError> {
        let create = |state: &mut State| {
            state.compare(key, None)?;
            state.is_free(key)?;
            Ok(state.write(key, write))
        };
        self.call(&format!("create {key}"), create).await
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        let update = |state: &mut State| {
            state.compare(&was.key, Some(was))?;
            Ok(state.write(&was.key, write))
        };
        self.call(&format!("update {}", was.key), update).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        let touch = |state: &mut State| {
            state.compare(&was.key, Some(was))?;
            if let Some(ttl) = ttl {
                state.touch(&was.key, Instant::now() + ttl);
            }
            Ok(was.clone())
        };
        self.call(&format!("renew {}", was.key), touch).await
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        let delete = |state: &mut State| {
            state.compare(&was.key, Some(was))?;
            state.remove(&was.key);
            Ok(())
        };
        self.call(&format!("delete {}", was.key), delete).await
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        self.shared.lock().watches += 1;
        let follower = Follower {
            shared: Arc::clone(&self.shared),
            node: self.node.clone(),
            seen: since.revision,
        };
        stream::unfold(follower, async |mut follower| Some((follower.next().await, follower)))
            .boxed()
    }
}

struct Follower {
    shared: Arc<Shared>,
    node: NodeId,
    seen: u64,
}

impl Follower {
    async fn next(&mut self) -> Result<Change, RegistryError> {
        loop {
            let ring = self.shared.bell.notified();
            let (link, change, deadline) = self.shared.work(|state| {
                let change = state.change_after(self.seen);
                (state.link_of(&self.node), change, state.next_deadline())
            });
            match (link.cut, change) {
                (Some(Cut::Fail), _) => return Err(cut_off(&self.node, "follow the leases")),
                (Some(Cut::Hang), _) => ring.await,
                (None, Err(error)) => return Err(error),
                (None, Ok(Some((revision, change)))) => {
                    if !link.delay.is_zero() {
                        tokio::time::sleep(link.delay).await;
                    }
                    self.seen = revision;
                    return Ok(change);
                }
                (None, Ok(None)) => {
                    let expiry = async {
                        match deadline {
                            Some(deadline) => tokio::time::sleep_until(deadline).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        biased;
                        () = expiry => {}
                        () = ring => {}
                    }
                }
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.lock().watches -= 1;
    }
}

fn cut_off(node: &NodeId, operation: &str) -> RegistryError {
    RegistryError::Unavailable { operation: operation.into(), source: CutOff(node.clone()).into() }
}
