//! Follows what changes.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::timeout;
use tonic::Status;

use crate::{
    etcd::{
        client::Client,
        connection::{Connection, RpcError, WatchStream},
        endpoint_error::{EndpointError, EndpointErrors},
        event_fold::Fold,
        keys::Keys,
        proto::{WatchCreateRequest, WatchRequest, WatchResponse},
    },
    registry::{Change, RegistryError},
};

/// The changes after revision `since`, until something fails.
pub(super) fn stream(
    client: Arc<Client>,
    keys: Arc<Keys>,
    since: u64,
) -> BoxStream<'static, Result<Change, RegistryError>> {
    let watch =
        Watch { client, keys, since, line: None, changes: VecDeque::new(), fold: Fold::default() };
    let next = async |watch: Option<Watch>| {
        let mut watch = watch?;
        match watch.next().await {
            Ok(change) => Some((Ok(change), Some(watch))),
            // The stream ends with its first error.
            Err(error) => Some((Err(error), None)),
        }
    };
    stream::unfold(Some(watch), next).boxed()
}

struct Watch {
    client: Arc<Client>,
    keys: Arc<Keys>,
    /// The revision that is known.
    since: u64,
    line: Option<(WatchStream, Arc<Connection>)>,
    /// What was received and not yet asked for.
    changes: VecDeque<Change>,
    fold: Fold,
}

impl Watch {
    async fn next(&mut self) -> Result<Change, RegistryError> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            let (mut following, connection) = match self.line.take() {
                Some(line) => line,
                None => self.open().await?,
            };
            // A member that hangs does not answer the pings of HTTP/2, which ends the stream with an error.
            let response = match following.next().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(self.broken(&connection, "it has ended").await),
                Err(status) => return Err(self.failed(&connection, status).await),
            };
            self.line = Some((following, connection));
            self.take(response)?;
        }
    }

    /// Begins to follow. A token that is not valid any more looks like a missing permission here, so that a denial counts
    /// only with a new one.
    async fn open(&mut self) -> Result<(WatchStream, Arc<Connection>), RegistryError> {
        let mut is_fresh = false;
        loop {
            let request = self.request();
            let opened = self.client.call_once(|rpc| rpc.watch(request.clone())).await;
            let (mut following, connection) = match opened {
                Ok(opened) => opened,
                Err((_, RpcError::Token)) if !is_fresh => {
                    self.client.forget_token();
                    is_fresh = true;
                    continue;
                }
                Err((connection, rpc_error)) => {
                    if let Some(connection) = connection {
                        self.client.give_up(&connection).await;
                    }
                    return Err(denied_or_unavailable(rpc_error));
                }
            };
            let first = match timeout(OPEN_TIMEOUT, following.next()).await {
                Ok(Ok(Some(first))) => first,
                Ok(Ok(None)) => return Err(self.broken(&connection, "it has ended").await),
                Ok(Err(status)) => return Err(self.failed(&connection, status).await),
                Err(_) => {
                    self.client.give_up(&connection).await;
                    let endpoint = connection.endpoint.clone();
                    let error = EndpointError::Silent { endpoint, patience: OPEN_TIMEOUT };
                    return Err(EndpointErrors::from(error).of(OPERATION));
                }
            };
            if first.canceled && first.compact_revision == 0 {
                let is_denied = first.cancel_reason.contains("permission denied")
                    || first.cancel_reason.contains("auth token");
                if is_denied && !is_fresh {
                    self.client.forget_token();
                    is_fresh = true;
                    continue;
                }
                let status = match is_denied {
                    true => {
                        Status::permission_denied(format!("etcdserver: {}", first.cancel_reason))
                    }
                    false => Status::unknown(format!("etcdserver: {}", first.cancel_reason)),
                };
                return Err(self.failed(&connection, status).await);
            }
            let known = first.header.as_ref().map_or(0, |header| header.revision.unsigned_abs());
            if first.created && known < self.since {
                // Either this member lags behind the one that was listed, or the data were replaced by older ones. In the
                // second case the changes up to `since` would be missed.
                return Err(self.broken(&connection, "it is behind what was listed").await);
            }
            self.take(first)?;
            return Ok((following, connection));
        }
    }

    fn request(&self) -> WatchRequest {
        let create = WatchCreateRequest {
            key: self.keys.begin(),
            range_end: self.keys.end(),
            start_revision: self.since.cast_signed().saturating_add(1),
            progress_notify: true,
            fragment: true,
        };
        WatchRequest { create: Some(create) }
    }

    fn take(&mut self, response: WatchResponse) -> Result<(), RegistryError> {
        if response.compact_revision != 0 {
            return Err(RegistryError::Compacted { revision: self.since });
        }
        if response.canceled {
            let reason = response.cancel_reason;
            return Err(RegistryError::Unavailable {
                operation: OPERATION.into(),
                source: format!("etcd ended it ({reason})").into(),
            });
        }
        for event in response.events {
            let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision.unsigned_abs());
            self.since = self.since.max(revision);
            self.changes.extend(self.fold.change(&self.keys, event));
        }
        Ok(())
    }

    async fn failed(&self, connection: &Arc<Connection>, status: Status) -> RegistryError {
        self.client.give_up(connection).await;
        denied_or_unavailable(self.client.rpc_error(connection, status))
    }

    async fn broken(&self, connection: &Arc<Connection>, reason: &str) -> RegistryError {
        self.client.give_up(connection).await;
        let endpoint = connection.endpoint.clone();
        EndpointErrors::from(EndpointError::Broken { endpoint, reason: reason.into() })
            .of(OPERATION)
    }
}

pub(super) fn denied_or_unavailable(rpc_error: RpcError) -> RegistryError {
    match rpc_error {
        RpcError::EndpointError(error) => EndpointErrors::from(error).of(OPERATION),
        RpcError::Answer(status) => RegistryError::Unavailable {
            operation: OPERATION.into(),
            source: format!("etcd answers: {}", status.message()).into(),
        },
        RpcError::Token => RegistryError::Unavailable {
            operation: OPERATION.into(),
            source: "etcd has forgotten our login".into(),
        },
    }
}

const OPERATION: &str = "follow the leases";

/// How long a member may take to begin.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
