//! Waits for changes of the configuration's key.

use std::sync::Arc;

use tokio::time::timeout;

use crate::{
    etcd::{
        client::Client,
        connection::{Connection, RpcError, WatchStream},
        etcd_watch::{OPEN_TIMEOUT, denied_or_unavailable},
        proto::{WatchCreateRequest, WatchRequest},
    },
    registry::RegistryError,
};

/// A watch of one key. Dropping it ends it.
pub(super) struct ConfigKeyWatch<'a> {
    client: &'a Client,
    key: &'a str,
    responses: WatchStream,
    connection: Arc<Connection>,
}

impl<'a> ConfigKeyWatch<'a> {
    /// Returns once the server says that every later change is told.
    pub(super) async fn open(client: &'a Client, key: &'a str) -> Result<Self, RegistryError> {
        let create = WatchCreateRequest {
            key: key.into(),
            progress_notify: true,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest { create: Some(create) };
        let opened = client.call_once(|rpc| rpc.watch(request.clone())).await;
        let (responses, connection) = match opened {
            Ok(opened) => opened,
            Err((connection, error)) => {
                if let RpcError::Token = error {
                    client.forget_token();
                }
                if let Some(connection) = connection {
                    client.give_up(&connection).await;
                }
                return Err(denied_or_unavailable(error));
            }
        };
        let mut watch = Self { client, key, responses, connection };
        match timeout(OPEN_TIMEOUT, watch.next()).await {
            Ok(opened) => opened.map(|_| watch),
            Err(_) => Err(watch.broken("it does not answer in time").await),
        }
    }

    /// Waits for the next change.
    pub(super) async fn changed(&mut self) -> Result<(), RegistryError> {
        while !self.next().await? {}
        Ok(())
    }

    /// Waits for the next response; returns whether it has a change.
    async fn next(&mut self) -> Result<bool, RegistryError> {
        match self.responses.next().await {
            Ok(Some(response)) if response.canceled => {
                // Also how a token that is not valid any more looks.
                self.client.forget_token();
                Err(self.unavailable(&format!("etcd ended it ({})", response.cancel_reason)))
            }
            Ok(Some(response)) => Ok(!response.events.is_empty()),
            Ok(None) => Err(self.broken("it has ended").await),
            Err(status) => Err(self.broken(status.message()).await),
        }
    }

    async fn broken(&self, reason: &str) -> RegistryError {
        self.client.give_up(&self.connection).await;
        self.unavailable(reason)
    }

    fn unavailable(&self, reason: &str) -> RegistryError {
        let operation = format!("follow etcd key {}", self.key);
        RegistryError::Unavailable { operation, source: reason.to_owned().into() }
    }
}
