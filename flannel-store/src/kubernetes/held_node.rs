//! This node's hold on the subnet that the cluster gave it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use flannel_core::{Lease, LeaseAttrs, NetworkConfig, StoreError, Subnet, SubnetLease};
use flannel_kube::Resource;
use serde_json::json;

use super::Shared;

/// The subnet, for as long as the Node has it.
#[derive(Debug)]
pub(super) struct HeldNode {
    shared: Arc<Shared>,
    config: NetworkConfig,
    lease: Lease,
}

impl HeldNode {
    pub(super) fn new(
        shared: Arc<Shared>,
        subnet: Subnet,
        config: NetworkConfig,
        attrs: &LeaseAttrs,
    ) -> Self {
        let lease = Lease::new(subnet, attrs.clone()).held_by(shared.node.clone());
        Self { shared, config, lease }
    }

    /// Writes the annotations that do not say what `attrs` do, if the subnet is still this node's.
    async fn write(&self, attrs: &LeaseAttrs) -> Result<(), StoreError> {
        let shared = &self.shared;
        let revoked = || StoreError::Revoked { subnet: self.lease.subnet, owner: None };
        let json = match shared.own_node().await {
            Err(error) if error.is_not_found() => return Err(revoked()),
            Err(error) => return Err(shared.unavailable_node("read", error)),
            Ok(json) => json,
        };
        let node = shared.view(&json)?;
        if shared.subnet(&node, &self.config).ok() != Some(self.lease.subnet) {
            return Err(revoked());
        }
        let missing = shared.names.missing(attrs, &node.metadata.annotations);
        shared.tell_unusable(shared.names.unusable_overwrites(&node.metadata.annotations));
        // Before it is written: what the watch shows then is what we published.
        shared.publishes(attrs);
        if missing.is_empty() {
            return Ok(());
        }
        self.patch(&json!(missing)).await
    }

    async fn patch(&self, annotations: &serde_json::Value) -> Result<(), StoreError> {
        let patch = json!({ "metadata": { "annotations": annotations } }).to_string();
        let shared = &self.shared;
        let nodes = Resource::cluster("nodes");
        let patched =
            shared.client.patch(&nodes, shared.node.as_str(), Some("status"), patch).await;
        patched.map(drop).map_err(|error| shared.unavailable_node("annotate", error))
    }
}

#[async_trait]
impl SubnetLease for HeldNode {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn ttl(&self) -> Option<Duration> {
        None
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        self.write(&self.lease.attrs).await
    }

    async fn publish(&mut self, attrs: &LeaseAttrs) -> Result<(), StoreError> {
        self.write(attrs).await?;
        self.lease.attrs = attrs.clone();
        Ok(())
    }

    /// The cluster keeps the subnet for this node; others do not see it any more.
    async fn release(self: Box<Self>) -> Result<(), StoreError> {
        let json = match self.shared.own_node().await {
            Err(error) if error.is_not_found() => {
                return Err(StoreError::Revoked { subnet: self.lease.subnet, owner: None });
            }
            Err(error) => return Err(self.shared.unavailable_node("read", error)),
            Ok(json) => json,
        };
        let node = self.shared.view(&json)?;
        if self.shared.subnet(&node, &self.config).ok() != Some(self.lease.subnet)
            || self.shared.names.read(&node.metadata.annotations).is_none()
        {
            return Err(StoreError::Revoked { subnet: self.lease.subnet, owner: None });
        }
        let ours: BTreeMap<String, Option<String>> =
            self.shared.names.ours().map(|name| (name, None)).collect();
        self.patch(&json!(ours)).await
    }
}
