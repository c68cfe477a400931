//! Events on the Node: what an operator sees in `kubectl describe node`.

mod plan;

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use flannel_core::{Backoff, Notice};
use flannel_kube::{Client, RequestError, Resource};
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use super::at;
use plan::{Plan, Write};

/// Keeps a Node's events. Made by [`KubernetesStore::events`](super::KubernetesStore::events).
#[derive(Debug)]
pub struct NodeEvents {
    pub(super) client: Client,
    pub(super) node: String,
}

impl NodeEvents {
    /// Tells what `notices` say of the node, for as long as they do. What lasts is counted in one event for each reason, and at most
    /// five events are written a minute. Nodes write at different times what they notice at the same time. Ends when `notices` does.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves the events to expire, as the API server does after an hour.
    pub async fn keep(self, mut notices: watch::Receiver<Vec<Notice>>) {
        let mut plan = Plan::new(random() as f64 / u64::MAX as f64);
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut write_from = Instant::now();
        let mut is_said = false;
        loop {
            let now = Instant::now();
            plan.observe(&notices.borrow_and_update(), now, SystemTime::now());
            let due = plan.next();
            if let Some((write, at)) = &due
                && (*at).max(write_from) <= now
            {
                match self.write(write).await {
                    Ok(()) => {
                        plan.written(write, Instant::now());
                        backoff.reset();
                        is_said = false;
                    }
                    Err(error) if error.is_not_found() && write.count > 1 => plan.expired(write),
                    Err(error) => {
                        write_from = Instant::now() + backoff.after_failure(random());
                        let reason = &error.reason;
                        match error.is_unreachable() || std::mem::replace(&mut is_said, true) {
                            true => debug!("cannot tell an event: {error}: {reason}"),
                            false => warn!(
                                "cannot tell events of the node, retrying; its log and status have what they would say: \
                                 {error}: {reason}"
                            ),
                        }
                    }
                }
                continue;
            }
            tokio::select! {
                changed = notices.changed() => if changed.is_err() { return },
                () = at(due.map(|(_, at)| at.max(write_from))) => {}
            }
        }
    }

    async fn write(&self, write: &Write) -> Result<(), RequestError> {
        let events = Resource::namespaced("events", NAMESPACE);
        let name = format!("{}.{}", shortened(&self.node, LONGEST_NODE_NAME), write.name);
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let message = shortened(&write.message, LONGEST_MESSAGE);
        if write.count > 1 {
            let patch = json!({ "count": write.count, "lastTimestamp": now, "message": message });
            return self.client.patch(&events, &name, None, patch.to_string()).await.map(drop);
        }
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": NAMESPACE },
            // kubectl describe looks for events by this uid too.
            "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node },
            "type": if write.is_warning { "Warning" } else { "Normal" },
            "reason": write.reason,
            "message": message,
            "source": { "component": COMPONENT, "host": self.node },
            "reportingComponent": COMPONENT,
            "reportingInstance": self.node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        match self.client.create(&events, event.to_string()).await {
            // An attempt whose answer was lost.
            Err(error) if error.is_conflict() => Ok(()),
            created => created.map(drop),
        }
    }
}

/// A number that differs from node to node, and from call to call.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// As much of a text as fits in so many bytes.
fn shortened(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Where events of objects without a namespace are.
const NAMESPACE: &str = "default";
const COMPONENT: &str = "flannel";
/// What `events.k8s.io` takes of a message.
const LONGEST_MESSAGE: usize = 1024;
/// Leaves room for the rest of an event's name, which has 253 characters at most.
const LONGEST_NODE_NAME: usize = 180;
/// Between attempts while the API server refuses events.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
