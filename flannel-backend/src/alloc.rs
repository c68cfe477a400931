use async_trait::async_trait;
use flannel_core::{Backend, BackendError, Lease, LeaseAttrs, Network, Peers, SyncReport};

use crate::{Uplink, UplinkFinder, UplinkWatch};

/// The backend that allocates a subnet and carries no packets: for networks whose routes somebody else makes, such as a cloud's
/// route tables or a routing daemon. flannel calls it `alloc`.
#[derive(Debug)]
pub struct Alloc {
    finder: UplinkFinder,
}

impl Alloc {
    /// The backend that publishes the addresses of the uplink that `finder` finds.
    pub fn new(finder: UplinkFinder) -> Self {
        Self { finder }
    }
}

#[async_trait]
impl Backend for Alloc {
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let Uplink { public_ip, public_ipv6, .. } = self.finder.find_for(previous).await?;
        // As with flannel, there is no backend type.
        Ok(LeaseAttrs { public_ip, public_ipv6, ..LeaseAttrs::default() })
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let uplink = self.finder.find_for(Some(lease)).await?;
        Ok(Box::new(AllocNetwork { uplink: self.finder.watch(&uplink)? }))
    }
}

/// Nothing, and the uplink's MTU.
#[derive(Debug)]
struct AllocNetwork {
    uplink: UplinkWatch,
}

#[async_trait]
impl Network for AllocNetwork {
    fn mtu(&self) -> u32 {
        self.uplink.current().mtu
    }

    async fn sync(&mut self, _peers: &Peers) -> Result<SyncReport, BackendError> {
        Ok(SyncReport::default())
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        self.uplink.changed().await.map(drop)
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        Ok(())
    }

    async fn hand_over(self: Box<Self>) -> Result<(), BackendError> {
        Ok(())
    }
}
