//! Orchestrators as stores: they know which node this is, and want to know how it is.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use async_trait::async_trait;
use flannel_core::{NodeId, Notice, Store, StoreError};
use futures::future::BoxFuture;
use tokio::sync::watch;

/// What runs the machines of a cluster, chooses their subnets, and shows people how they are.
#[async_trait]
pub trait Orchestrator: fmt::Debug + Send + Sync {
    /// Where it keeps subnets.
    fn store(&self) -> Arc<dyn Store>;

    /// Which of its nodes this is.
    fn node(&self) -> NodeId;

    /// The addresses that its operators want the node to publish: they go before those of the node's options.
    ///
    /// # Errors
    ///
    /// What keeps it from answering. It is asked again if that is [retryable](StoreError::is_retryable).
    async fn node_addresses(&self) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), StoreError>;

    /// Shows people what `notices` say of the node, from before it has a network. Ends when `notices` does.
    fn show(&self, notices: watch::Receiver<Vec<Notice>>) -> BoxFuture<'static, ()>;

    /// Acts on whether the node is ready, from when it has a network. Ends when `ready` does.
    fn heed(&self, ready: watch::Receiver<bool>) -> BoxFuture<'static, ()>;
}
