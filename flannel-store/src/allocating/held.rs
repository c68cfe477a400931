//! One node's hold on its subnet, fenced by comparing.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flannel_core::{Lease, LeaseAttrs, NodeId, StoreError, SubnetLease};

use crate::{
    allocating::{store_error, value_of},
    registry::{Lifetime, Record, Registry, RegistryError, Write},
};

/// A lease as this node last wrote it.
#[derive(Debug)]
pub(crate) struct Held<R> {
    registry: Arc<R>,
    node: NodeId,
    ttl: Duration,
    record: Record,
    lease: Lease,
    /// What we tried to publish, each value once, without learning whether it was written.
    unanswered: Vec<String>,
}

impl<R: Registry> Held<R> {
    pub(crate) fn new(
        registry: Arc<R>,
        node: NodeId,
        ttl: Duration,
        record: Record,
    ) -> Result<Self, StoreError> {
        let lease = lease_of(&record)?;
        Ok(Self { registry, node, ttl, record, lease, unanswered: Vec::new() })
    }

    /// Goes on from what the registry has, if we wrote it: its answer was lost.
    fn resume(&mut self, current: Option<Box<Record>>) -> Result<(), StoreError> {
        let ours = |record: &Record| {
            let Ok(value) = &record.value else {
                return false;
            };
            record.owner.as_ref() == Some(&self.node)
                && *record != self.record
                && (self.record.value.as_ref() == Ok(value) || self.unanswered.contains(value))
        };
        match current {
            Some(record) if ours(&record) => self.written(*record),
            current => Err(StoreError::Revoked {
                subnet: self.lease.subnet,
                owner: current.and_then(|record| holder(&record)),
            }),
        }
    }

    fn written(&mut self, record: Record) -> Result<(), StoreError> {
        self.lease = lease_of(&record)?;
        self.record = record;
        Ok(())
    }

    /// The operation's result; `None` to try once more, because the registry had what we wrote before.
    fn settle<T>(&mut self, result: Result<T, RegistryError>) -> Result<Option<T>, StoreError> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(RegistryError::Conflict { current }) => self.resume(current).map(|()| None),
            Err(error) => Err(store_error(error)),
        }
    }

    async fn write(&mut self, value: String, owner: Option<NodeId>) -> Result<(), StoreError> {
        let ttl = self.ttl();
        let write = Write { value, owner, ttl };
        loop {
            let result = self.registry.update(&self.record, &write).await;
            if let Some(record) = self.settle(result)? {
                return self.written(record);
            }
        }
    }
}

#[async_trait]
impl<R: Registry> SubnetLease for Held<R> {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn ttl(&self) -> Option<Duration> {
        (self.record.lifetime != Lifetime::Unbounded).then_some(self.ttl)
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        let ttl = self.ttl();
        loop {
            let result = self.registry.touch(&self.record, ttl).await;
            if let Some(record) = self.settle(result)? {
                return self.written(record);
            }
        }
    }

    async fn publish(&mut self, attrs: &LeaseAttrs) -> Result<(), StoreError> {
        let value = value_of(attrs)?;
        if self.record.value.as_ref() == Ok(&value) {
            return self.renew().await;
        }
        if !self.unanswered.contains(&value) {
            self.unanswered.push(value.clone());
        }
        self.write(value, Some(self.node.clone())).await?;
        self.unanswered.clear();
        Ok(())
    }

    async fn release(mut self: Box<Self>) -> Result<(), StoreError> {
        // A reservation was made by a person: it stays for the next node that has its address.
        if self.record.lifetime == Lifetime::Unbounded {
            let value = value_of(&self.lease.attrs)?;
            return self.write(value, None).await;
        }
        loop {
            let result = self.registry.delete(&self.record).await;
            if self.settle(result)?.is_some() {
                return Ok(());
            }
        }
    }
}

/// Who holds a record: its owner, or as with flannel whoever has its address.
fn holder(record: &Record) -> Option<NodeId> {
    let address = || record.lease().ok().and_then(|lease| lease.attrs.address());
    record.owner.clone().or_else(|| address().map(NodeId::from))
}

/// The lease in a record that we wrote ourselves.
fn lease_of(record: &Record) -> Result<Lease, StoreError> {
    record.lease().map_err(|source| StoreError::Unavailable {
        operation: format!("read back the lease of {}", record.key),
        source: source.into(),
    })
}
