//! What a node does with its network, one thing at a time.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

use super::failure::Failure;
use crate::{
    backend::{Backend, BackendError, Network},
    fault::Activity,
    lease::{Lease, LeaseAttrs},
    peers::Peers,
    report::SyncReport,
};

/// One operation on the network at a time.
pub(super) enum Operation {
    /// Wait until somebody else changes the data path, from a moment on.
    Drift(Instant),
    Sync {
        peers: Arc<Peers>,
        advertise: Option<Lease>,
    },
}

pub(super) enum Outcome {
    Drifted(Result<(), BackendError>),
    Synced {
        result: Result<Box<SyncReport>, BackendError>,
        attrs: Option<Result<LeaseAttrs, BackendError>>,
    },
}

pub(super) async fn operate(
    backend: &dyn Backend,
    network: &mut dyn Network,
    operation: Operation,
    deadline: Duration,
) -> Outcome {
    match operation {
        Operation::Drift(from) => {
            sleep_until(from).await;
            Outcome::Drifted(network.drifted().await)
        }
        Operation::Sync { peers, advertise } => {
            let attrs = match &advertise {
                None => None,
                Some(own) => {
                    Some(within(Activity::Advertise, deadline, backend.advertise(Some(own))).await)
                }
            };
            let result = within(Activity::Sync, deadline, network.sync(&peers)).await;
            Outcome::Synced { result: result.map(Box::new), attrs }
        }
    }
}

async fn within<T>(
    activity: Activity,
    deadline: Duration,
    call: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    match timeout(deadline, call).await {
        Ok(result) => result,
        Err(elapsed) => Err(Failure::late(activity.to_string(), elapsed)),
    }
}

/// Lets the executor turn once.
pub(super) async fn yield_once() {
    let mut turned = false;
    poll_fn(|context| {
        if turned {
            return Poll::Ready(());
        }
        turned = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
