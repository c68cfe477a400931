//! From one backend to another while packets flow.

mod merge;
mod migrating_network;
#[cfg(test)]
mod migrating_tests;
mod migration_plan;
#[cfg(test)]
mod model_tests;
mod phases;
mod projection;
mod shared_state;
mod two_syncs;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::{migrating_network::MigratingNetwork, shared_state::Shared};
use crate::{
    backend::{Backend, BackendError, Network},
    config::NetworkConfig,
    lease::{Lease, LeaseAttrs},
    report::BackendReport,
};

/// A backend that becomes another one when the network's configuration says so, without a lost packet.
///
/// The node starts the new backend beside the old one and publishes both ([`SecondBackend`](crate::SecondBackend)); until the end it
/// accepts packets by both. Each node names the backend by which it wants to be sent to, and its peers follow that as soon as they run
/// it: it is the one that the node does not take down. A node that sends to nobody by the old one says so. One that hears that of
/// all its peers takes the old one out of its lease, and down after [`MigrationOptions::linger`], in which those learn of it who have been
/// told last.
///
/// So nobody has to agree on a moment, and a node that lags, or restarts, is waited for. That each node publishes what it accepts
/// before others use it, publishes what it uses before it does, and accepts that for as long as others may use it, is the whole proof
/// that a sender needs: no settle time is in it. A backend that drops what comes from unknown senders is told of them beforehand
/// ([`Network::foresee`]) or asks them ([`Network::is_accepted`]).
///
/// If the configuration goes back midway, the same goes the other way round, and a third backend waits. Only then does the linger
/// count: a node that learns more than that later of the way back than others may for a moment send by what they have taken down.
///
/// A node without a second backend, such as flanneld, is sent to by the one that it has, and waited for.
#[derive(Debug)]
pub struct Migrating {
    shared: Arc<Shared>,
}

/// Makes the backends between which a node migrates, and remembers which it has.
pub trait BackendSource: fmt::Debug + Send + Sync + 'static {
    /// Makes the backend of `config`. Touches nothing.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] or [`BackendError::Unsupported`] if there is no such backend, its options cannot be used, or
    /// [`Place::beside`] another one it does not work.
    fn build(&self, config: &NetworkConfig, place: Place)
    -> Result<Arc<dyn Backend>, BackendError>;

    /// Refuses a backend that a running node may not move to, nor back to. None, unless a source knows better.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] with the reason.
    fn admit(&self, config: &NetworkConfig) -> Result<(), BackendError> {
        let _ = config;
        Ok(())
    }

    /// Keeps `record` until the next [`recall`](Self::recall), also over a restart of the process, with all secrets that are in it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if it cannot be kept.
    fn remember(&self, record: &MigrationRecord) -> Result<(), BackendError>;

    /// What was remembered last, if there is anything that can be read.
    fn recall(&self) -> Option<MigrationRecord>;
}

/// Where a backend is to work.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// Another backend of the node is or was at work, whose devices, routes and filters are not to be touched.
    pub beside: bool,
    /// Its routes carry the second mark, by which they are told from those of the other backend.
    pub alternate: bool,
}

/// Which backends a node has.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MigrationRecord {
    /// The one that it has, or had before.
    pub base: Recorded,
    /// The one that was started beside it.
    pub beside: Option<Recorded>,
}

/// A backend that a node has.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Recorded {
    /// The network's configuration with this backend.
    pub config: NetworkConfig,
    /// Whether it has the second mark.
    pub alternate: bool,
}

/// How a node migrates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MigrationOptions {
    /// For how long packets are accepted by a backend after the lease has ceased to name it. 10 s: by then peers have seen that, unless
    /// they are cut off from the store.
    pub linger: Duration,
}

impl Default for MigrationOptions {
    fn default() -> Self {
        Self { linger: Duration::from_secs(10) }
    }
}

impl Migrating {
    /// The backend of `config`, beside those that were left when the node ended in the middle of a migration, or before it saw that the
    /// configuration had changed.
    ///
    /// # Errors
    ///
    /// As [`BackendSource::build`] of the backend of `config`.
    pub fn new(
        source: Arc<dyn BackendSource>,
        config: &NetworkConfig,
        options: MigrationOptions,
    ) -> Result<Self, BackendError> {
        Ok(Self { shared: Arc::new(Shared::new(source, config, options)?) })
    }
}

#[async_trait]
impl Backend for Migrating {
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        self.shared.advertise(previous).await
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        Ok(Box::new(MigratingNetwork::start(Arc::clone(&self.shared), lease).await?))
    }

    fn report(&self) -> BackendReport {
        self.shared.report()
    }
}
