//! One node's hold on its subnet: the protocol's holder with its registry.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flannel_core::{Lease, LeaseAttrs, NodeId, StoreError, SubnetLease};

use crate::{
    allocating::{
        perform::perform,
        protocol::{Holding, Wish},
        value_of,
    },
    registry::{Record, Registry},
};

/// A lease as this node last wrote it.
#[derive(Debug)]
pub(crate) struct Held<R> {
    registry: Arc<R>,
    holding: Holding,
}

impl<R: Registry> Held<R> {
    pub(crate) fn new(
        registry: Arc<R>,
        node: NodeId,
        ttl: Duration,
        record: Record,
    ) -> Result<Self, StoreError> {
        Ok(Self { registry, holding: Holding::new(node, ttl, record)? })
    }

    async fn fulfil(&mut self, wish: Wish) -> Result<(), StoreError> {
        loop {
            let request = self.holding.ask(&wish);
            let answer = perform(self.registry.as_ref(), &request).await?;
            if self.holding.answered(&wish, answer)? {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl<R: Registry> SubnetLease for Held<R> {
    fn lease(&self) -> &Lease {
        self.holding.lease()
    }

    fn ttl(&self) -> Option<Duration> {
        self.holding.ttl()
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        self.fulfil(Wish::Renew).await
    }

    async fn publish(&mut self, attrs: &LeaseAttrs) -> Result<(), StoreError> {
        let value = value_of(attrs)?;
        self.fulfil(Wish::Publish(value)).await
    }

    async fn release(mut self: Box<Self>) -> Result<(), StoreError> {
        self.fulfil(Wish::Release).await
    }
}
