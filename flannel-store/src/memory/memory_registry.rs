//! A cluster in memory as a key-value engine.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::Instant;

use crate::{
    memory::{Shared, cluster_state::State},
    registry::{Change, ConfigText, NewRecord, Record, Registry, RegistryError, Snapshot},
};

/// The registry of a [`MemoryCluster`](crate::MemoryCluster).
#[derive(Clone, Debug)]
pub struct MemoryRegistry {
    shared: Arc<Shared>,
}

impl MemoryRegistry {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn call<T>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        // No real store answers at once, and code that relies on it would only pass here.
        tokio::task::yield_now().await;
        self.shared.work(work)
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn config(&self) -> Result<ConfigText, RegistryError> {
        let read = |state: &mut State| {
            Ok(ConfigText { place: "memory".into(), text: state.config.clone() })
        };
        self.call(read).await
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
        self.call(set).await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        let read =
            |state: &mut State| Ok(Snapshot { records: state.records(), revision: state.revision });
        self.call(read).await
    }

    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError> {
        let create = |state: &mut State| {
            state.compare(key, None)?;
            state.is_free(key)?;
            Ok(state.write(key, write))
        };
        self.call(create).await
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        let update = |state: &mut State| {
            state.compare(&was.key, Some(was))?;
            Ok(state.write(&was.key, write))
        };
        self.call(update).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        let touch = |state: &mut State| {
            state.compare(&was.key, Some(was))?;
            if let Some(ttl) = ttl {
                state.touch(&was.key, Instant::now() + ttl);
            }
            Ok(was.clone())
        };
        self.call(touch).await
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        let delete = |state: &mut State| {
            state.compare(&was.key, Some(was))?;
            state.remove(&was.key);
            Ok(())
        };
        self.call(delete).await
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        self.shared.lock().watches += 1;
        let follower = Follower { shared: Arc::clone(&self.shared), seen: since.revision };
        stream::unfold(follower, async |mut follower| Some((follower.next().await, follower)))
            .boxed()
    }
}

struct Follower {
    shared: Arc<Shared>,
    seen: u64,
}

impl Follower {
    async fn next(&mut self) -> Result<Change, RegistryError> {
        loop {
            let ring = self.shared.bell.notified();
            let (change, deadline) =
                self.shared.work(|state| (state.change_after(self.seen), state.next_deadline()));
            if let Some((revision, change)) = change? {
                self.seen = revision;
                return Ok(change);
            }
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

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.lock().watches -= 1;
    }
}
