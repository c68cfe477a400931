//! How long the store takes to answer, and whether the sandbox is why it does not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use flannel_store::{Change, ConfigText, NewRecord, Record, Registry, RegistryError, Snapshot};
use futures::{StreamExt, stream::BoxStream};
use tokio::time::Instant;

use crate::sandbox::Allowed;

/// The calls of a store, by operation. Clones share their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreTimes(Arc<Mutex<BTreeMap<&'static str, Times>>>);

/// All calls of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Times {
    pub(crate) calls: u64,
    /// Those that the store did not answer, or refused.
    pub(crate) failures: u64,
    /// What all of them took together.
    pub(crate) total: Duration,
}

impl StoreTimes {
    pub(crate) fn all(&self) -> BTreeMap<&'static str, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, operation: &'static str, took: Duration, failed: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.entry(operation).or_default();
        times.calls += 1;
        times.failures += u64::from(failed);
        times.total += took;
    }
}

/// A registry whose calls are timed, and whose errors name the sandbox if that is their reason.
#[derive(Debug)]
pub(crate) struct TimedRegistry {
    registry: Box<dyn Registry>,
    times: StoreTimes,
    allowed: Allowed,
}

impl TimedRegistry {
    pub(crate) fn new(registry: Box<dyn Registry>, times: &StoreTimes, allowed: Allowed) -> Self {
        Self { registry, times: times.clone(), allowed }
    }

    async fn time<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let began = Instant::now();
        let result = call.await;
        // Somebody else having been faster is an answer.
        let failed =
            matches!(result, Err(RegistryError::Denied { .. } | RegistryError::Unavailable { .. }));
        self.times.add(operation, began.elapsed(), failed);
        result.map_err(|error| self.allowed.explain_store(error))
    }
}

#[async_trait]
impl Registry for TimedRegistry {
    async fn config(&self) -> Result<ConfigText, RegistryError> {
        self.time("config", self.registry.config()).await
    }

    async fn config_changed(&self, seen: &ConfigText) -> Result<ConfigText, RegistryError> {
        let changed = self.registry.config_changed(seen).await;
        changed.map_err(|error| self.allowed.explain_store(error))
    }

    async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
        self.time("set_config", self.registry.set_config(was, text)).await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        self.time("list", self.registry.list()).await
    }

    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError> {
        self.time("create", self.registry.create(key, write)).await
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        self.time("update", self.registry.update(was, write)).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        self.time("touch", self.registry.touch(was, ttl)).await
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        self.time("delete", self.registry.delete(was)).await
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        let allowed = self.allowed.clone();
        let changes = self.registry.watch(since);
        changes.map(move |it| it.map_err(|error| allowed.explain_store(error))).boxed()
    }
}

#[cfg(test)]
mod tests {
    use flannel_store::MemoryCluster;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_timed_and_lost_races_are_no_failures() {
        let cluster = MemoryCluster::new(&r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap());
        let times = StoreTimes::default();
        let registry = Box::new(cluster.registry());
        let registry = TimedRegistry::new(registry, &times, Allowed::default());
        let write = NewRecord { value: "{}".into(), owner: None, ttl: None };
        registry.create("10.3.7.0-24", &write).await.unwrap();
        registry.create("10.3.7.0-24", &write).await.unwrap_err();
        registry.list().await.unwrap();
        let all = times.all();
        assert_eq!((all["create"].calls, all["create"].failures, all["list"].calls), (2, 0, 1));

        times.add("list", Duration::from_secs(3), true);
        let list = times.all()["list"];
        assert_eq!((list.calls, list.failures), (2, 1));
        assert!(list.total >= Duration::from_secs(3));
    }
}
