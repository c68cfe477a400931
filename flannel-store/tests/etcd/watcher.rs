//! Watches, and what their watchers know.

use std::{collections::BTreeMap, time::Duration};

use flannel_core::{Lease, LeaseAttrs, LeaseEvent, Store, StoreError, Subnet};
use flannel_store::EtcdStore;
use futures::{StreamExt, stream::BoxStream};
use tokio::time::timeout;

use crate::{
    cluster::Cluster,
    faults::chain,
    flannel::{LIMIT, item},
};

type Watch = BoxStream<'static, Result<LeaseEvent, StoreError>>;

/// Follows until `lease` is known as it is, through errors and resets; what the events were.
pub(crate) async fn until_known(
    watch: &mut Watch,
    lease: &Lease,
) -> Vec<Result<LeaseEvent, StoreError>> {
    let mut events = Vec::new();
    loop {
        let event = item(watch).await;
        let known = match &event {
            Ok(LeaseEvent::Reset(leases)) => leases.iter().any(|it| **it == *lease),
            Ok(LeaseEvent::Upsert(upsert)) => **upsert == *lease,
            _ => false,
        };
        events.push(event);
        if known {
            return events;
        }
    }
}

/// What one watcher knows.
pub(crate) struct Watcher {
    watch: Watch,
    pub(crate) known: BTreeMap<Subnet, LeaseAttrs>,
    pub(crate) errors: Vec<String>,
}

impl Watcher {
    /// One that has its first list, and follows.
    pub(crate) async fn follow(store: &EtcdStore, cluster: &Cluster) -> Self {
        let before = cluster.open_watches();
        let mut watcher = Self { watch: store.watch(), known: BTreeMap::new(), errors: Vec::new() };
        watcher.until_true(cluster).await;
        // Nothing happens, so that this only lets it begin.
        let begun = timeout(LIMIT, async {
            while cluster.open_watches() == before {
                let event = timeout(Duration::from_millis(5), watcher.watch.next()).await;
                assert!(event.is_err(), "{event:?}");
            }
        });
        begun.await.expect("it begins to follow");
        watcher
    }

    /// Follows until it knows what is stored, and nothing else.
    pub(crate) async fn until_true(&mut self, cluster: &Cluster) {
        let prefix = Cluster::lease_key("");
        let stored = cluster.kvs(&prefix).into_iter().filter_map(|kv| {
            let subnet = kv.key.strip_prefix(&prefix)?.parse().ok()?;
            Some((subnet, kv.value.parse().ok()?))
        });
        let truth: BTreeMap<Subnet, LeaseAttrs> = stored.collect();
        if truth.is_empty() {
            // So that it has its first list.
            self.next().await;
        }
        self.until(|known| *known == truth).await;
    }

    /// Follows until what it knows is as wanted.
    pub(crate) async fn until(
        &mut self,
        is_wanted: impl Fn(&BTreeMap<Subnet, LeaseAttrs>) -> bool,
    ) {
        while !is_wanted(&self.known) {
            self.next().await;
        }
    }

    async fn next(&mut self) {
        match item(&mut self.watch).await {
            Err(error) => self.errors.push(chain(&error)),
            Ok(LeaseEvent::Remove(subnet)) => drop(self.known.remove(&subnet)),
            Ok(LeaseEvent::Reset(leases)) => {
                let leases = leases.into_iter().map(|lease| (lease.subnet, lease.attrs.clone()));
                self.known = leases.collect();
            }
            Ok(LeaseEvent::Upsert(lease)) => {
                self.known.insert(lease.subnet, lease.attrs.clone());
            }
        }
    }
}
