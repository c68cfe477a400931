//! Where the protocol meets a registry.

use flannel_core::StoreError;

use crate::{
    registry::{Registry, RegistryError},
    registry_store::{
        protocol::{Answer, Request},
        store_error,
    },
};

/// Asks `registry`. What keeps it from answering is the error.
pub(crate) async fn perform<R: Registry>(
    registry: &R,
    request: &Request,
) -> Result<Answer, StoreError> {
    let answer = match request {
        Request::Create { key, write } => registry.create(key, write).await.map(Answer::Written),
        Request::Delete(was) => registry.delete(was).await.map(|()| Answer::Deleted),
        Request::List => registry.list().await.map(|snapshot| Answer::Listed(snapshot.records)),
        Request::Touch { was, ttl } => registry.touch(was, *ttl).await.map(Answer::Written),
        Request::Update { was, write } => registry.update(was, write).await.map(Answer::Written),
    };
    match answer {
        Err(RegistryError::Conflict { current }) => Ok(Answer::Conflict(current)),
        answer => answer.map_err(store_error),
    }
}
