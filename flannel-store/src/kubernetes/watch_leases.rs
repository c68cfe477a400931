//! Follows the leases of all nodes, and keeps the last state on disk.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use flannel_core::{LeaseEvent, Store, StoreError};
use flannel_kube::{Reflector, ReflectorOptions, Resource};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::Instant;
use tracing::warn;

use super::{
    Families, KubernetesStore, LastState, LeaseView, NodeProjection, at, events::random,
    unavailable,
};

/// All leases, and then what becomes of them.
pub(super) fn watch(store: KubernetesStore) -> BoxStream<'static, Result<LeaseEvent, StoreError>> {
    let projection = NodeProjection { names: store.shared.names.clone() };
    let options = ReflectorOptions {
        metadata_only: true,
        protobuf: true,
        lull: LULL,
        ..ReflectorOptions::default()
    };
    let (client, nodes) = (store.shared.client.clone(), Resource::cluster("nodes"));
    let reflector = Reflector::new(client, nodes, projection, options);
    let watch = LeaseWatch {
        store,
        reflector,
        families: None,
        ready: VecDeque::new(),
        known: false,
        save_at: None,
        unsaved: false,
    };
    stream::unfold(watch, |mut watch| async {
        let item = watch.next().await;
        Some((item, watch))
    })
    .boxed()
}

struct LeaseWatch {
    store: KubernetesStore,
    reflector: Reflector<NodeProjection>,
    families: Option<Families>,
    ready: VecDeque<LeaseEvent>,
    /// Whether anything was told.
    known: bool,
    /// When the state is written again.
    save_at: Option<Instant>,
    /// Whether it could not be written, and that was said.
    unsaved: bool,
}

impl LeaseWatch {
    async fn next(&mut self) -> Result<LeaseEvent, StoreError> {
        let families = match self.families {
            Some(families) => families,
            None => {
                let families = Families::of(&self.store.config().await?);
                self.families = Some(families);
                families
            }
        };
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let shared = Arc::clone(&self.store.shared);
            let change = {
                let mut change = pin!(self.reflector.next());
                tokio::select! {
                    biased;
                    change = &mut change => Some(change),
                    () = at(self.save_at) => None,
                    () = shared.config_changed.notified(), if self.known => {
                        self.save_at.get_or_insert_with(|| Instant::now() + save_after());
                        continue;
                    }
                }
            };
            match change {
                None => self.save(families).await,
                Some(Ok(change)) => {
                    let published = shared.published();
                    let (own, published) = (shared.node.as_str(), published.as_ref());
                    let view = LeaseView { own, published, families };
                    self.ready.extend(view.events(change, self.reflector.objects()));
                    if !self.ready.is_empty() {
                        self.known = true;
                        self.save_at.get_or_insert_with(|| Instant::now() + save_after());
                    }
                }
                Some(Err(error)) => {
                    // Whoever starts while the API server is away goes on with what was known before.
                    if !self.known
                        && error.is_unreachable()
                        && let Some(last) = shared.last_state()
                    {
                        self.known = true;
                        warn!(
                            leases = last.leases.len(),
                            "the API server is away, using the leases that were known before"
                        );
                        return Ok(LeaseEvent::Reset(last.leases));
                    }
                    return Err(unavailable("watch the cluster's nodes".into(), error));
                }
            }
        }
    }

    async fn save(&mut self, families: Families) {
        self.save_at = None;
        let shared = &self.store.shared;
        let Some(file) = shared.state_file.clone() else { return };
        let published = shared.published();
        let view = LeaseView { own: shared.node.as_str(), published: published.as_ref(), families };
        let leases = view.leases(self.reflector.objects());
        // What cannot be read at the moment is as it was.
        let before = || shared.last_state().unwrap_or_default();
        let network = shared.network.text(&shared.client).await;
        let network = network.unwrap_or_else(|_| before().network);
        let addresses = self.store.node_addresses().await;
        let addresses = addresses.unwrap_or_else(|_| before().addresses);
        let node = shared.node.to_string();
        let state = LastState { node, network, addresses, leases };
        let written = tokio::task::spawn_blocking(move || file.write(&state)).await;
        match written {
            Ok(Ok(())) => self.unsaved = false,
            Ok(Err(error)) if !std::mem::replace(&mut self.unsaved, true) => {
                warn!("cannot keep the last state for a start without the API server: {error}");
            }
            _ => {}
        }
    }
}

/// How long news of a node may wait behind another node's heartbeat. A cluster of 10,000 nodes has 33 of them a second.
const LULL: Duration = Duration::from_millis(200);
/// How long changes are gathered before the state is written: nodes ask the API server for what belongs to it, and should not all do so at
/// once.
fn save_after() -> Duration {
    SAVE_AFTER + SAVE_AFTER.mul_f64(random() as f64 / u64::MAX as f64)
}

/// The least of it.
const SAVE_AFTER: Duration = Duration::from_secs(5);
