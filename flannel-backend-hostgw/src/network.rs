//! The running data path: routes to all peers.

use std::{collections::BTreeMap, net::IpAddr};

use async_trait::async_trait;
use flannel_backend::{PathsWatch, PeerTable, UplinkWatch};
use flannel_core::{BackendError, Lease, Network, Peers, Subnet, SyncReport, Transport};

use crate::plan::Routes;

/// Routes to all peers of one network.
#[derive(Debug)]
pub(crate) struct HostGwNetwork {
    uplink: UplinkWatch,
    lease: Lease,
    table: PeerTable,
    routes: Routes,
    paths: PathsWatch,
    /// What was known of the ways to peers when they were planned.
    limits: BTreeMap<IpAddr, u32>,
}

impl HostGwNetwork {
    pub(crate) fn new(
        uplink: UplinkWatch,
        lease: Lease,
        table: PeerTable,
        routes: Routes,
        paths: PathsWatch,
    ) -> Self {
        Self { uplink, lease, table, routes, paths, limits: BTreeMap::new() }
    }
}

#[async_trait]
impl Network for HostGwNetwork {
    fn mtu(&self) -> u32 {
        self.uplink.current().mtu
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let link = self.uplink.current().index;
        if self.routes.link != link || self.lease.subnet != peers.own().subnet {
            self.routes.link = link;
            self.lease = peers.own().clone();
            self.table.replan();
        }
        let limits = self.paths.current().mtus;
        if self.limits != limits {
            self.limits = limits;
            self.table.replan();
        }
        let (routes, own, limits) = (self.routes, &self.lease, &self.limits);
        let mut report = self.table.sync(peers, |peer| routes.plan(own, peer, limits)).await?;
        report.faults.extend(self.uplink.faults());
        Ok(report)
    }

    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        self.table.transport(subnet)
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        tokio::select! {
            drifted = self.table.drifted() => drifted,
            () = self.paths.changed() => Ok(()),
            changed = self.uplink.changed() => changed.map(drop),
        }
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        self.table.teardown().await
    }

    async fn hand_over(self: Box<Self>) -> Result<(), BackendError> {
        self.table.hand_over().await
    }
}
