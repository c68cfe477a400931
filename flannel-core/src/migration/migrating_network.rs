//! The networks of one or two backends as one network.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::{
    select,
    time::{Instant, sleep_until},
};

use super::{
    merge::fault,
    migration_plan::{Layout, Published, Side},
    shared_state::Shared,
};
use crate::{
    backend::{BackendError, Network},
    config::{BackendConfig, NetworkConfig},
    lease::Lease,
    peer_fault::{PeerFault, PeerProblem},
    peers::{Peers, Revision, RouteScope},
    report::{SyncReport, Transport},
    subnet::Subnet,
};

#[derive(Debug)]
pub(super) struct MigratingNetwork {
    pub(super) shared: Arc<Shared>,
    pub(super) base: Box<dyn Network>,
    pub(super) beside: Option<Box<dyn Network>>,
    /// By which backend peers are sent to since the last sync; `None` if all are by the only one. Those that a process before may have
    /// left to either are missing.
    pub(super) via: Option<BTreeMap<Subnet, Side>>,
    /// When nobody had a second backend, neither we nor a peer, and we synced alone.
    pub(super) plain_at: Option<Revision>,
    /// The peers to which the kernel refuses the way by the new backend, as of this sync.
    pub(super) refused: BTreeSet<Subnet>,
    /// Since when the lease does not name the backend any more that is left.
    pub(super) left_at: Option<Instant>,
    /// What the driver was told to publish, and has not published yet.
    pub(super) told: Option<Layout>,
    /// The network that is being taken down.
    pub(super) leaving: Option<Leaving>,
    /// When to sync again.
    pub(super) look_at: Option<Instant>,
}

/// A network that nobody needs any more.
pub(super) struct Leaving {
    pub(super) kind: String,
    /// Whether it was the first one, in whose place the other one is now.
    pub(super) gives_way: bool,
    pub(super) teardown: BoxFuture<'static, Result<(), BackendError>>,
}

impl fmt::Debug for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaving").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl MigratingNetwork {
    pub(super) async fn start(shared: Arc<Shared>, lease: &Lease) -> Result<Self, BackendError> {
        let running = shared.state().base.clone();
        let base = running.backend.start(&running.own_lease(lease)).await?;
        let is_left = {
            let mut state = shared.state();
            let published = Published::by(&lease.attrs);
            let beside = state.beside.as_ref();
            let is_left = beside.is_some_and(|it| published.is_only(&it.backend_type));
            // Peers have seen that it goes: it is taken down, and comes back as a new one. The second backend is not looked at: a lease
            // that names the base alone may be from before the second one was first published.
            if is_left && state.target == Side::Base {
                state.then = Some(state.base.recorded.config.clone());
                state.target = Side::Beside;
            }
            is_left
        };
        Ok(Self {
            shared,
            base,
            beside: None,
            via: Some(BTreeMap::new()),
            plain_at: None,
            refused: BTreeSet::new(),
            left_at: is_left.then(Instant::now),
            told: None,
            leaving: None,
            look_at: None,
        })
    }

    pub(super) fn network(&mut self, side: Side) -> Option<&mut Box<dyn Network>> {
        match side {
            Side::Base => Some(&mut self.base),
            Side::Beside => self.beside.as_mut(),
        }
    }
}

#[async_trait]
impl Network for MigratingNetwork {
    fn mtu(&self) -> u32 {
        let beside = self.beside.as_ref().map(|network| network.mtu());
        beside.into_iter().chain([self.base.mtu()]).min().unwrap_or_default()
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        self.look_at = None;
        self.take_down(peers).await;
        let state = self.shared.state().clone();
        if state.layout == state.advertised {
            self.told = None;
        }
        let Some(beside) = state.beside else {
            return self.sync_alone(&state.base, peers, RouteScope::Network).await;
        };
        if let Err(error) = self.start_beside(&beside, peers.own()).await {
            let mut report = self.sync_alone(&state.base, peers, RouteScope::Network).await?;
            let operation = format!("start {} beside {}", beside.kind(), state.base.kind());
            report.faults.push(fault(operation, &error));
            return Ok(report);
        }
        let beside = self.shared.state().beside.clone().unwrap_or(beside);
        let (mut report, plan) =
            self.sync_both([&state.base, &beside], state.target, peers).await?;
        let unreached = peers.iter().filter(|peer| !plan.via.contains_key(&peer.subnet));
        let ours = if state.target == Side::Base { state.base.kind() } else { beside.kind() };
        for peer in unreached {
            let theirs = peer.attrs.backend_type.clone().into_owned();
            let fault = PeerFault::OtherBackend { ours: ours.into(), theirs };
            report.problems.push(PeerProblem::new(peer.subnet, peer.attrs.address(), fault));
        }
        report.problems.sort_by_key(|problem| problem.peer);
        report.migration = self.finish_if_due(&plan, state.target, peers).await;
        Ok(report)
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        {
            let state = self.shared.state();
            // Once: what cannot be published at the moment is tried again by whoever was told.
            let is_told = state.layout == state.advertised || state.layout == self.told;
            if state.beside.is_some() && state.layout.is_some() && !is_told {
                self.told = state.layout;
                return Ok(());
            }
        }
        let look = async {
            match self.look_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let beside = async {
            match &mut self.beside {
                Some(network) => network.drifted().await,
                None => std::future::pending().await,
            }
        };
        select! {
            () = look => Ok(()),
            drifted = self.base.drifted() => drifted,
            drifted = beside => drifted,
        }
    }

    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        let state = self.shared.state().clone();
        let with_options = |config: &NetworkConfig| config.with_backend(options.clone());
        let is_meant = |config: &&NetworkConfig| config.backend().kind() == options.kind();
        let then = state.then.as_ref().filter(is_meant).map(with_options);
        let side = Side::ALL
            .into_iter()
            .find(|side| state.side(*side).is_some_and(|running| running.kind() == options.kind()));
        if let Some(then) = &then {
            self.shared.source.admit(then)?;
        } else if side.is_none() {
            let reason = format!("the node has {}", state.base.kind());
            return Err(BackendError::Unsupported { backend: options.kind().into(), reason });
        }
        if let Some(side) = side {
            if let Some(network) = self.network(side) {
                network.reconfigure(options)?;
            }
            if let Some(running) = self.shared.state().side_mut(side) {
                running.recorded.config = with_options(&running.recorded.config);
            }
        }
        if then.is_some() {
            self.shared.state().then = then;
        }
        self.remember();
        Ok(())
    }

    fn migrate(&mut self, config: &NetworkConfig) -> Result<(), BackendError> {
        self.begin(config)
    }

    fn is_migrating(&self) -> bool {
        self.shared.state().beside.is_some()
    }

    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        match (self.via.as_ref().and_then(|via| via.get(subnet)), &self.beside) {
            (Some(Side::Beside), Some(beside)) => beside.transport(subnet),
            _ => self.base.transport(subnet),
        }
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        let left = end(self.leaving).await;
        let beside = match self.beside {
            Some(network) => network.teardown().await,
            None => Ok(()),
        };
        self.base.teardown().await.and(beside).and(left)
    }

    async fn hand_over(self: Box<Self>) -> Result<(), BackendError> {
        let left = end(self.leaving).await;
        let beside = match self.beside {
            Some(network) => network.hand_over().await,
            None => Ok(()),
        };
        self.base.hand_over().await.and(beside).and(left)
    }
}

/// Takes down what is left, if anything is.
async fn end(leaving: Option<Leaving>) -> Result<(), BackendError> {
    match leaving {
        Some(leaving) => leaving.teardown.await,
        None => Ok(()),
    }
}
