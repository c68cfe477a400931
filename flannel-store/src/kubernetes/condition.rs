//! The node's condition NetworkUnavailable, which keeps pods away from nodes without a network.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use flannel_core::Backoff;
use flannel_kube::{Client, NodeView, Projection, Reflector, ReflectorOptions, Resource};
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{at, events::random};

/// Keeps the condition true. Made by [`KubernetesStore::condition`](super::KubernetesStore::condition).
#[derive(Debug)]
pub struct NetworkCondition {
    pub(super) client: Client,
    pub(super) node: String,
}

/// What is to be said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wanted {
    /// The network is there.
    Available,
    /// It is not.
    Unavailable,
}

impl NetworkCondition {
    /// Says that the network is available as soon as the node is `ready`, and whenever somebody says otherwise; that it is not, when
    /// the node has not been ready for a minute after it was. Writes nothing that is the case, and waits ten
    /// seconds after each write; one that failed is tried again after five to ten seconds at first, and then less often. Ends when `ready` does.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves the condition as it is, as flannel does.
    pub async fn keep(self, mut ready: watch::Receiver<bool>) {
        let nodes = Resource::cluster("nodes");
        let mut own = Reflector::new(
            self.client.clone(),
            nodes.clone().only(&self.node),
            ConditionProjection,
            ReflectorOptions::default(),
        );
        let mut backoff = Backoff::new(PAUSE, 6 * PAUSE);
        let mut is_ready = *ready.borrow();
        let (mut was_ready, mut unready_since) = (is_ready, Instant::now());
        let mut write_from = Instant::now();
        loop {
            let now = Instant::now();
            let unready_for = (!is_ready && was_ready).then(|| now - unready_since);
            let observed = own.objects().values().next().cloned();
            let wanted =
                observed.and_then(|observed| wanted(is_ready, unready_for, observed.as_deref()));
            if let Some(wanted) = wanted
                && write_from <= now
            {
                let patch = patch(wanted, SystemTime::now());
                match self.client.patch(&nodes, &self.node, Some("status"), patch).await {
                    Ok(_) => {
                        info!(?wanted, "told the node's condition");
                        backoff.reset();
                        write_from = Instant::now() + PAUSE;
                    }
                    Err(error) => {
                        let reason = &error.reason;
                        warn!("cannot tell the node's condition, retrying: {error}: {reason}");
                        write_from = Instant::now() + backoff.after_failure(random());
                    }
                }
            }
            let look_at = match (wanted, unready_for) {
                (Some(_), _) => Some(write_from),
                (None, Some(_)) => Some(unready_since + PATIENCE),
                (None, None) => None,
            };
            tokio::select! {
                // Why it does not answer, the store says.
                _ = own.next() => {}
                changed = ready.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let before = std::mem::replace(&mut is_ready, *ready.borrow_and_update());
                    was_ready |= is_ready;
                    if before && !is_ready {
                        unready_since = Instant::now();
                    }
                }
                () = at(look_at.filter(|at| *at > now)) => {}
            }
        }
    }
}

/// What has to be said, if anything: `observed` is the condition's status, if it is there.
fn wanted(is_ready: bool, unready_for: Option<Duration>, observed: Option<&str>) -> Option<Wanted> {
    match observed {
        Some("False") if !is_ready => {
            unready_for.filter(|it| *it >= PATIENCE).map(|_| Wanted::Unavailable)
        }
        Some("False") => None,
        _ if is_ready => Some(Wanted::Available),
        _ => None,
    }
}

/// The patch, byte for byte as flannel's `setNodeNetworkUnavailableFalse`. It is only written when the status changes, so that both
/// times are now.
fn patch(wanted: Wanted, now: SystemTime) -> String {
    let now = humantime::format_rfc3339_seconds(now);
    let (status, reason, message) = match wanted {
        Wanted::Available => ("False", "FlannelIsUp", "Flannel is running on this node"),
        Wanted::Unavailable => ("True", "FlannelIsNotReady", "Flannel is not ready on this node"),
    };
    format!(
        r#"{{"status":{{"conditions":[{{"type":"{CONDITION}","status":"{status}","lastHeartbeatTime":"{now}","lastTransitionTime":"{now}","reason":"{reason}","message":"{message}"}}]}}}}"#
    )
}

/// Keeps the condition's status.
struct ConditionProjection;

impl Projection for ConditionProjection {
    type Kept = Option<Box<str>>;

    fn project(&self, _: &Arc<str>, object: &str) -> Result<Self::Kept, serde_json::Error> {
        let node: NodeView<'_> = serde_json::from_str(object)?;
        let found = node.status.conditions.iter().find(|it| it.kind == CONDITION);
        Ok(found.map(|condition| (&*condition.status).into()))
    }
}

const CONDITION: &str = "NetworkUnavailable";
/// How long a node may not be ready before it is said: longer than a restart.
const PATIENCE: Duration = Duration::from_secs(60);
/// The shortest time between two writes.
const PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_true() {
        let minute = Some(PATIENCE);
        for (is_ready, unready_for, observed, expected) in [
            (true, None, None, Some(Wanted::Available)),
            (true, None, Some("True"), Some(Wanted::Available)),
            (true, None, Some("Unknown"), Some(Wanted::Available)),
            (true, None, Some("False"), None),
            (false, None, None, None),
            (false, None, Some("True"), None),
            (false, None, Some("False"), None),
            (false, Some(PATIENCE / 2), Some("False"), None),
            (false, minute, Some("False"), Some(Wanted::Unavailable)),
            (false, minute, Some("True"), None),
        ] {
            assert_eq!(wanted(is_ready, unready_for, observed), expected);
        }
    }

    #[test]
    fn the_patch_is_flannels_byte_for_byte() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        // What json.Marshal makes of v1.NodeCondition.
        let expected = r#"{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","lastHeartbeatTime":"2023-11-14T22:13:20Z","lastTransitionTime":"2023-11-14T22:13:20Z","reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}"#;
        assert_eq!(patch(Wanted::Available, now), expected);
    }
}
