//! The running data path: routes to all peers.

use async_trait::async_trait;
use flannel_backend::{PathsWatch, PeerTable, TableOptions, UplinkWatch};
use flannel_core::{BackendConfig, BackendError, Network, Peers, Subnet, SyncReport, Transport};
use ipnetwork::IpNetwork;

use crate::{backend, plan::Facts};

/// Routes to all peers of one network.
#[derive(Debug)]
pub(crate) struct HostGwNetwork {
    uplink: UplinkWatch,
    table: PeerTable,
    networks: Vec<IpNetwork>,
    /// What all routes were planned with.
    facts: Facts,
    paths: PathsWatch,
    /// The option MTU.
    mtu: Option<u32>,
}

impl HostGwNetwork {
    pub(crate) fn new(
        uplink: UplinkWatch,
        own: Subnet,
        table: PeerTable,
        options: &TableOptions,
        mut paths: PathsWatch,
        mtu: Option<u32>,
    ) -> Self {
        let TableOptions { networks, protocol, table: number, .. } = options.clone();
        let (link, limits) = (uplink.current().index, paths.current().mtus);
        let facts = Facts { own, link, protocol, table: number, mtu: None, limits };
        Self { uplink, table, networks, facts, paths, mtu }
    }

    /// What of the option MTU makes a difference.
    fn narrower(&self) -> Option<u32> {
        self.mtu.filter(|mtu| *mtu < self.uplink.current().mtu)
    }
}

#[async_trait]
impl Network for HostGwNetwork {
    fn mtu(&self) -> u32 {
        self.narrower().unwrap_or_else(|| self.uplink.current().mtu)
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let facts = Facts {
            own: peers.own().subnet,
            link: self.uplink.current().index,
            mtu: self.narrower(),
            limits: self.paths.current().mtus,
            ..self.facts
        };
        if self.facts != facts {
            self.facts = facts;
            self.table.replan();
        }
        let mut report = self.table.sync(peers, |peer| self.facts.plan(peer)).await?;
        report.faults.extend(self.uplink.faults());
        Ok(report)
    }

    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        self.mtu = backend::read(options, &self.networks)?;
        Ok(())
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
