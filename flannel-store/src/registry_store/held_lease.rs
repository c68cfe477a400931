//! One node's hold on its subnet: the protocol's holder with its registry.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flannel_core::{Lease, LeaseAttrs, StoreError, SubnetLease};
use tracing::warn;

use crate::{
    registry::{Record, Registry},
    registry_store::{
        Shared,
        perform::perform,
        plan,
        protocol::{Answer, Holding, LeaseOp},
        value_of,
    },
};

/// A lease as this node last wrote it.
#[derive(Debug)]
pub(crate) struct Held<R> {
    shared: Arc<Shared<R>>,
    holding: Holding,
}

impl<R: Registry> Held<R> {
    pub(crate) fn new(
        shared: Arc<Shared<R>>,
        ttl: Duration,
        record: Record,
    ) -> Result<Self, StoreError> {
        let holding = Holding::new(shared.node.clone(), ttl, record)?;
        Ok(Self { shared, holding })
    }

    async fn run(&mut self, op: LeaseOp) -> Result<(), StoreError> {
        if self.shared.overlaps.any() {
            self.holding.overlapped = true;
            // A node of ours that came second goes by itself.
            tokio::time::sleep(SETTLING).await;
        }
        loop {
            let request = self.holding.ask(&op);
            let answer = perform(self.shared.registry.as_ref(), &request).await?;
            if let Answer::Listed(records) = &answer {
                self.report(records);
            }
            if self.holding.answered(&op, answer)? {
                return Ok(());
            }
        }
    }
}

impl<R: Registry> Held<R> {
    /// Says that our lease is not the only one of its addresses, and what follows.
    fn report(&self, records: &[Record]) {
        let subnet = self.holding.lease().subnet;
        if let Some(winner) = plan::winner(&self.holding.record, records) {
            let holder = winner.owner.as_ref().map(ToString::to_string);
            warn!(%subnet, other = winner.key, holder, "another lease has addresses of our subnet and stays: moving to another");
            return;
        }
        for other in self.shared.overlaps.news() {
            warn!(%subnet, other, "another lease has addresses of our subnet: ours was there first, and its node has to move");
        }
    }
}

/// How long it takes a node to give up a lease that it got second.
const SETTLING: Duration = Duration::from_secs(1);

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
