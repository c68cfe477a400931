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
    /// Its holder lives.
    Answered(Record),
    /// Nobody has answered; this is the record now.
    Alone(Record),
    /// The record was changed meanwhile.
    Changed,
}

/// Whether another node that lives may hold `record`, which `node` is about to take.
///
/// * It has our name and another address, as after a change of address, or where a machine was cloned with its name.
/// * It has our address and another name, as where the folder with the name was lost.
/// * Both are our address, which two machines may have been given.
///
/// That we held the subnet before (`ours`) settles the last two.
pub(crate) fn is_doubtful(record: &Record, node: &NodeId, attrs: &LeaseAttrs, ours: bool) -> bool {
    let Some(owner) = &record.owner else { return false };
    let Some(address) = record.lease().ok().and_then(|lease| lease.attrs.address()) else {
        return false;
    };
    let same_address = attrs.address() == Some(address);
    let sure = match (owner == node, same_address) {
        (_, false) => false,
        (true, true) => ours || node.address().is_none(),
        (false, true) => ours,
    };
    record.lifetime != Lifetime::Lapsed && !sure
}

/// Writes `record` as it is, and waits for a holder that lives to write it anew. Neither changes anything for anybody.
pub(crate) async fn challenge<R: Registry>(
    registry: &R,
    record: &Record,
    ttl: Duration,
) -> Result<Challenged, StoreError> {
    let subnet = &record.key;
    info!(subnet, "asking whether another node holds the lease of our name or address");
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
            Ok(Challenged::Answered(now))
        }
        _ => Ok(Challenged::Changed),
    }
}

/// How long a holder has to answer: it hears of the question within milliseconds, and answers once a second at most. Half a
/// minute of a store's troubles would be too long to wait for a node that is gone.
const ANSWER_TIME: Duration = Duration::from_secs(3);
