//! The data path between nodes: the contract that every backend keeps.

use std::fmt;

use async_trait::async_trait;

use crate::{
    config::{BackendConfig, NetworkConfig},
    fields::FieldError,
    lease::{Lease, LeaseAttrs},
    peers::Peers,
    public_address::UnusableAddress,
    report::{BackendReport, SyncReport, Transport},
    subnet::Subnet,
};

/// A way to carry packets between nodes: it makes the [`Network`] once the node has its lease.
#[cfg_attr(any(test, feature = "testing"), mockall::automock)]
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What this node has to publish so that peers reach it.
    ///
    /// Called before there is a lease, with the one from before a restart if the store knows it; and again with the node's
    /// lease, after each start and whenever the network may have drifted: an answer that differs is published.
    ///
    /// # Errors
    ///
    /// [`BackendError`]. The node calls again later; only before it has a lease does an error that is not retryable end it.
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError>;

    /// Brings up our own end of the data path, adopting what an earlier run has left.
    ///
    /// # Errors
    ///
    /// [`BackendError`]; the node calls again later unless the error is final.
    ///
    /// # Cancel safety
    ///
    /// If dropped, our end may be half made; calling it again completes it.
    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError>;

    /// What the backend says of itself now. Most have nothing to say that is not in the report of a sync.
    fn report(&self) -> BackendReport {
        BackendReport::default()
    }
}

/// A running data path. Dropping it leaves the data path up.
///
/// Every clause below is a test of `network_conformance!` (feature `testing`), which each backend runs on a real kernel.
///
/// * `reaches_the_goal`: after a sync, peers are reached and nobody else.
/// * `a_second_sync_changes_nothing` and writes nothing.
/// * `repairs_drift` within a second of [`drifted`](Self::drifted) resolving.
/// * `follows_a_changed_peer`: nothing is left of what it was before.
/// * `forgets_who_left`, and `forgets_who_left_while_nobody_ran`.
/// * `a_restart_adopts_what_is_there` and writes nothing.
/// * `leaves_foreign_state_alone`.
/// * `survives_being_dropped_at_any_await`: the next sync finishes the job.
/// * `a_bad_peer_costs_only_itself` and is named in the report.
/// * `teardown_removes_all_we_made`.
#[cfg_attr(any(test, feature = "testing"), mockall::automock)]
#[async_trait]
pub trait Network: fmt::Debug + Send {
    /// The largest packet that a pod may send, in bytes. May change with any sync.
    fn mtu(&self) -> u32;

    /// Makes the data path match `peers`: all of them, and no others of ours.
    ///
    /// What fails for one peer is in the report and stops nobody else.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the set as a whole cannot be worked on, such as a kernel that does not answer.
    ///
    /// # Cancel safety
    ///
    /// If dropped, part of the changes is made; the next sync makes the rest.
    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError>;

    /// Resolves when the data path may not match any more, by somebody else's doing.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if that can no longer be told; the node then syncs to be sure.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no notice: the next call resolves at once.
    async fn drifted(&mut self) -> Result<(), BackendError>;

    /// Goes on with other options of the backend, from the next sync on.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] or [`BackendError::Config`], and nothing has changed, if these options cannot be used, or not
    /// without a restart. This is what every change comes to unless a backend knows better.
    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        let reason = "its options are read when it starts".into();
        Err(BackendError::Unsupported { backend: options.kind().into(), reason })
    }

    /// Moves to the backend of `config`, which is another, from the next sync on.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] or [`BackendError::Config`], and nothing has changed, if that takes a restart. It does unless this
    /// is the network of a [`Migrating`](crate::Migrating) backend.
    fn migrate(&mut self, config: &NetworkConfig) -> Result<(), BackendError> {
        let reason = "its network is made of one backend".into();
        Err(BackendError::Unsupported { backend: config.backend().kind().into(), reason })
    }

    /// Whether peers are reached by either of two backends, until all have moved to one.
    fn is_migrating(&self) -> bool {
        false
    }

    /// Beside another network of this node: what a peer publishes for this one as far as it has not published it yet, if that
    /// follows from what it has; packets from it are accepted then. Nothing does, unless a backend knows better.
    fn foresee(&self, attrs: &LeaseAttrs) -> Option<LeaseAttrs> {
        let _ = attrs;
        None
    }

    /// Beside another network of this node: whether peers on [standby](Peers::is_standby) are to be among those of a sync. Not if this
    /// network accepts packets from anybody.
    fn knows_senders(&self) -> bool {
        false
    }

    /// Beside another network of this node: whether the peer that holds `subnet` is known to accept what this one sends. One that
    /// publishes that it does needs no other proof, unless a backend knows better.
    fn is_accepted(&self, subnet: &Subnet) -> bool {
        let _ = subnet;
        true
    }

    /// How packets reach the peer that holds `subnet`, as of the last sync; `None` if it is not served, or if this network does not
    /// tell. Costs nothing unless it is asked for.
    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        let _ = subnet;
        None
    }

    /// Takes down all that this network has made, and nothing else. Never called unless somebody asks for it.
    ///
    /// # Errors
    ///
    /// [`BackendError`] naming what could not be removed; the rest is removed all the same.
    async fn teardown(self: Box<Self>) -> Result<(), BackendError>;

    /// Ends as [`teardown`](Self::teardown) does, but leaves the way to peers in the form that flanneld gives it, so that packets keep
    /// flowing until flanneld takes over, and nothing is left that flanneld could not follow or remove.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] if flannel has no such backend, [`BackendError`] naming what could not be done; the rest is
    /// done all the same.
    async fn hand_over(self: Box<Self>) -> Result<(), BackendError> {
        Err(BackendError::Unsupported {
            backend: "network's".into(),
            reason: "flanneld could not take over what it has made".into(),
        })
    }
}

/// Why a backend cannot do what it was asked to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The address that peers are to reach us at cannot serve.
    #[error("cannot publish the address of this node")]
    Address {
        /// Why not.
        #[source]
        source: UnusableAddress,
    },
    /// The backend's options in the network configuration cannot be used.
    #[error("options of the {backend} backend")]
    Config {
        /// The backend's name.
        backend: String,
        /// Which option, and what would be valid.
        #[source]
        source: FieldError,
    },
    /// There is no interface or address to reach peers from.
    #[error("no interface to reach peers from")]
    Interface {
        /// What was looked for and what was there.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel refuses something that all peers need.
    #[error("cannot {operation}")]
    Kernel {
        /// What we wanted, with its object.
        operation: String,
        /// The kernel's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This backend cannot work with these settings on this machine.
    #[error("the {backend} backend cannot work here: {reason}")]
    Unsupported {
        /// The backend's name.
        backend: String,
        /// Why, and what to do instead.
        reason: String,
    },
}

impl BackendError {
    /// Whether waiting can help without anybody changing the configuration.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Interface { .. } | Self::Kernel { .. } => true,
            Self::Address { .. } | Self::Config { .. } | Self::Unsupported { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows nothing better than the defaults.
    #[derive(Debug)]
    struct Plain;

    #[async_trait]
    impl Network for Plain {
        fn mtu(&self) -> u32 {
            1500
        }

        async fn sync(&mut self, _: &Peers) -> Result<SyncReport, BackendError> {
            Ok(SyncReport::default())
        }

        async fn drifted(&mut self) -> Result<(), BackendError> {
            Ok(())
        }

        async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_network_that_says_nothing_is_of_one_backend_and_open_to_all() {
        let config: NetworkConfig =
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"other"}}"#.parse().unwrap();
        let (mut network, subnet) = (Box::new(Plain), "10.3.2.0-24".parse().unwrap());
        assert!(!network.is_migrating() && !network.knows_senders());
        assert!(network.is_accepted(&subnet));
        assert_eq!(network.transport(&subnet), None);
        assert_eq!(network.foresee(&LeaseAttrs::default()), None);
        for refused in [
            network.migrate(&config),
            network.reconfigure(config.backend()),
            network.hand_over().await,
        ] {
            assert!(matches!(refused, Err(BackendError::Unsupported { .. })), "{refused:?}");
        }
    }
}
