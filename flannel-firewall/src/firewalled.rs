//! A backend with a firewall around it.

use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendConfig, BackendError, BackendReport, Lease, LeaseAttrs, Network, NetworkConfig,
    Peers, Subnet, SyncReport, Transport,
};
use flannel_netlink::Namespace;

use crate::{firewall::Firewall, options::FirewallOptions, rules::Scope};

/// A backend whose networks keep the node's firewall as well: one sync, one drift, one teardown for both.
///
/// What the firewall cannot do is in the report and does not keep packets between pods from flowing.
///
/// # Examples
///
/// ```no_run
/// use std::sync::Arc;
///
/// use flannel_core::{Backend, Node, Store};
/// use flannel_firewall::{FirewallOptions, Firewalled, Masquerade};
/// use flannel_netlink::Namespace;
///
/// # async fn run(store: impl Store, backend: Arc<dyn Backend>) -> Result<(), Box<dyn std::error::Error>> {
/// let options = FirewallOptions { masquerade: Masquerade::RandomPorts, ..FirewallOptions::default() };
/// let backend = Firewalled::new(backend, &Namespace::current()?, options);
/// Node::new(store, backend).run().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Firewalled {
    inner: Arc<dyn Backend>,
    namespace: Namespace,
    options: FirewallOptions,
}

impl Firewalled {
    /// `inner` with a firewall in `namespace`.
    pub fn new(inner: Arc<dyn Backend>, namespace: &Namespace, options: FirewallOptions) -> Self {
        Self { inner, namespace: namespace.clone(), options }
    }
}

#[async_trait]
impl Backend for Firewalled {
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        self.inner.advertise(previous).await
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        // It writes nothing yet, and whoever asked for the impossible hears of it before anything is touched.
        let firewall = Firewall::open(&self.namespace, self.options.clone()).await?;
        let inner = self.inner.start(lease).await?;
        Ok(Box::new(FirewalledNetwork { inner, firewall, scope: Scope::default() }))
    }

    fn report(&self) -> BackendReport {
        self.inner.report()
    }
}

#[derive(Debug)]
struct FirewalledNetwork {
    inner: Box<dyn Network>,
    firewall: Firewall,
    /// As of the last sync.
    scope: Scope,
}

#[async_trait]
impl Network for FirewalledNetwork {
    fn mtu(&self) -> u32 {
        self.inner.mtu()
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let mut scope = Scope::new(peers.config(), &peers.own().subnet);
        // A backend that is left carries packets until all peers have moved.
        scope.tunnels_only = !self.inner.is_migrating();
        // Neither waits for the other: a lock that some iptables holds is no reason to leave a peer unserved.
        let (synced, firewall) = tokio::join!(self.inner.sync(peers), self.firewall.sync(&scope));
        self.scope = scope;
        let mut report = synced?;
        firewall.add_to(&mut report);
        Ok(report)
    }

    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        self.inner.reconfigure(options)
    }

    fn migrate(&mut self, config: &NetworkConfig) -> Result<(), BackendError> {
        self.inner.migrate(config)
    }

    fn is_migrating(&self) -> bool {
        self.inner.is_migrating()
    }

    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        self.inner.transport(subnet)
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        tokio::select! {
            drifted = self.inner.drifted() => drifted,
            drifted = self.firewall.drifted() => Ok(drifted?),
        }
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        let (network, firewall) = tokio::join!(self.inner.teardown(), self.firewall.teardown());
        network?;
        firewall?;
        Ok(())
    }

    async fn hand_over(self: Box<Self>) -> Result<(), BackendError> {
        // First, so that the rules stay as they are if flannel has no such backend.
        self.inner.hand_over().await?;
        self.firewall.hand_over(&self.scope).await?;
        Ok(())
    }
}
