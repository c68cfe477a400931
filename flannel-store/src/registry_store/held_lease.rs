//! One node's hold on its subnet: the protocol's holder with its registry.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flannel_core::{Lease, LeaseAttrs, NodeId, StoreError, SubnetLease};

use crate::{
    registry::{Record, Registry},
    registry_store::{
        perform::perform,
        protocol::{Holding, LeaseOp},
        value_of,
    },
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

    async fn run(&mut self, op: LeaseOp) -> Result<(), StoreError> {
        loop {
            let request = self.holding.ask(&op);
            let answer = perform(self.registry.as_ref(), &request).await?;
            if self.holding.answered(&op, answer)? {
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
        self.run(LeaseOp::Renew).await
    }

    async fn publish(&mut self, attrs: &LeaseAttrs) -> Result<(), StoreError> {
        let value = value_of(attrs)?;
        self.run(LeaseOp::Publish(value)).await
    }

    async fn release(mut self: Box<Self>) -> Result<(), StoreError> {
        self.run(LeaseOp::Release).await
    }
}
