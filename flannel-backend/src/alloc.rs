use async_trait::async_trait;
use flannel_core::{Backend, BackendError, Lease, LeaseAttrs, Network, Peers, SyncReport};
use flannel_netlink::iface::InterfaceWatch;

use crate::{Uplink, UplinkFinder};

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
        _previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let Uplink { public_ip, public_ipv6, .. } = self.finder.find().await?;
        // As with flannel, there is no backend type.
        Ok(LeaseAttrs { public_ip, public_ipv6, ..LeaseAttrs::default() })
    }

    async fn start(&self, _lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let uplink = self.finder.find().await?;
        Ok(Box::new(AllocNetwork { uplink: self.finder.watch(&uplink)? }))
    }
}

/// Nothing, and the uplink's MTU.
#[derive(Debug)]
struct AllocNetwork {
    uplink: InterfaceWatch,
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
        let changed = self.uplink.changed().await;
        changed.map(drop).map_err(|error| BackendError::Interface { source: error.into() })
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        Ok(())
    }
}
