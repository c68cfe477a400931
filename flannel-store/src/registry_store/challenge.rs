//! Finding out whether somebody with our name lives: before a node takes what may be another's.

use std::time::Duration;

use flannel_core::{LeaseAttrs, NodeId, StoreError};
use tracing::info;

use crate::{
    registry::{Lifetime, Record, Registry},
    registry_store::{
        perform::perform,
        protocol::{Answer, Request, as_it_is},
    },
};

/// What came of a challenge.
#[derive(Debug)]
pub(crate) enum Challenged {
    /// Nobody has answered; this is the record now.
    Alone(Record),
    /// The record was changed meanwhile.
    Changed,
}

/// Whether `record`, which bears the name of `node`, may be that of another node with the same name: its address is not ours,
/// as after a change of address, or where a machine was cloned together with its name.
pub(crate) fn is_doubtful(record: &Record, node: &NodeId, attrs: &LeaseAttrs) -> bool {
    let address = record.lease().ok().and_then(|lease| lease.attrs.address());
    node.address().is_none()
        && record.owner.as_ref() == Some(node)
        && record.lifetime != Lifetime::Lapsed
        && address.is_some()
        && address != attrs.address()
}

/// Writes `record` as it is, and waits for a holder that lives to write it anew. Neither changes anything for anybody.
pub(crate) async fn challenge<R: Registry>(
    registry: &R,
    record: &Record,
    ttl: Duration,
) -> Result<Challenged, StoreError> {
    let subnet = &record.key;
    info!(subnet, "our lease has another address, asking whether another node has our name");
    let ttl = (record.lifetime != Lifetime::Unbounded).then_some(ttl);
    let question = Request::Update { was: record.clone(), write: as_it_is(record, ttl) };
    let Answer::Written(asked) = perform(registry, &question).await? else {
        return Ok(Challenged::Changed);
    };
    tokio::time::sleep(ANSWER_TIME).await;
    let Answer::Listed(records) = perform(registry, &Request::List).await? else {
        return Ok(Challenged::Changed);
    };
    match records.into_iter().find(|now| now.key == asked.key) {
        Some(now) if now.revision == asked.revision => Ok(Challenged::Alone(now)),
        Some(now) if (&now.value, &now.owner) == (&asked.value, &asked.owner) => {
            let lease = now.lease().ok();
            Err(StoreError::NodeIdInUse {
                node: now.owner.expect("it has the name of the node that asks"),
                address: lease.and_then(|lease| lease.attrs.address()),
            })
        }
        _ => Ok(Challenged::Changed),
    }
}

/// How long a holder has to answer: it hears of the question within milliseconds, and answers once a second at most. Half a
/// minute of a store's troubles would be too long to wait for a node that is gone.
const ANSWER_TIME: Duration = Duration::from_secs(3);
