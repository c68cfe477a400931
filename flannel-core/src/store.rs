//! Where leases live: the contract that every store keeps.

use std::{fmt, net::IpAddr, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{
    alloc::NetworkFull,
    config::{ConfigError, NetworkConfig},
    identity::NodeId,
    lease::{Lease, LeaseAttrs, LeaseEvent},
    subnet::Subnet,
};

/// Where the network's configuration and leases live, as one node uses it.
///
/// A store handle belongs to one node; its identity was given when the handle was made. Every clause below and at
/// [`watch`](Self::watch) is a test of `store_conformance!` (feature `testing`), which each implementation runs.
///
/// * `a_node_keeps_its_subnet`: a node that acquires again gets the subnet that it holds, also if its address changed.
/// * `two_nodes_never_share_a_subnet`, nor any address of it, also when they acquire at the same time.
/// * `a_subnet_fits_the_network`: it is one that [`NetworkConfig::admits`].
/// * `ipv6_and_dual_stack_networks_are_served` like those of IPv4.
/// * `a_reservation_is_honoured_and_never_expires`: a lease without expiry, made by a person, goes to the node with its
///   address; releasing it gives it back to that person.
/// * `a_full_network_says_so`: [`StoreError::Full`], with counts.
/// * `a_network_without_a_usable_config_says_so`: [`StoreError::ConfigMissing`] or [`StoreError::Config`].
/// * `previous_is_what_the_node_holds`.
/// * `a_renewal_of_a_lost_lease_is_revoked` and so are publishing and releasing; none touches what is there instead.
/// * `a_renewal_disturbs_nobody`: watchers are told nothing.
/// * `dropping_a_lease_keeps_it`; only [`SubnetLease::release`] gives it up, and `a_release_gives_the_subnet_back`.
/// * `dropping_acquire_midway_leaves_at_most_our_lease`.
///
/// # Clocks
///
/// No two clocks are compared. A store gives a lease to somebody else only when its TTL has gone by on the store's clock since
/// the last renewal *arrived* there. A holder counts from the moment at which it *began* that renewal, on its own clock, and
/// for [`trusted_for`] only. So a subnet has one holder that trusts its lease at any time, if
///
/// * no node's clock is more than 1 % slower than the store's while a TTL goes by;
/// * a node's clock goes on while the machine sleeps, or machines do not sleep. Linux's monotonic clock stops then: a machine
///   that was suspended trusts its lease for what was left before, or until its first renewal;
/// * nobody removes or replaces the lease past the protocol, as operators and flannel do. The holder then learns of it with
///   its watch or its next renewal, and trusts its lease no longer than a TTL after that.
///
/// A node that does not trust its lease any more says so and is not ready; its data path stays as it is.
#[cfg_attr(any(test, feature = "testing"), mockall::automock)]
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Reads the network's configuration.
    ///
    /// # Errors
    ///
    /// [`StoreError::ConfigMissing`] or [`StoreError::Config`] if there is none that can be used, else what keeps the store
    /// from answering.
    async fn config(&self) -> Result<NetworkConfig, StoreError>;

    /// The lease that this node holds already, from before a restart; `None` if the store knows of none.
    ///
    /// Reads only. The lease may be somebody else's by the time that [`acquire`](Self::acquire) is called.
    ///
    /// # Errors
    ///
    /// What keeps the store from answering.
    async fn previous(&self) -> Result<Option<Lease>, StoreError>;

    /// Takes a subnet for this node and publishes `attrs` with it.
    ///
    /// Losing a race for a subnet is not an error: the store chooses again.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] if nothing is free; [`StoreError::NodeIdInUse`]; the errors of [`config`](Self::config); else what
    /// keeps the store from answering.
    ///
    /// # Cancel safety
    ///
    /// If dropped, this node may hold a lease that it does not know of; the next call returns that one.
    async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Box<dyn SubnetLease>, StoreError>;

    /// Follows all leases of the network, this node's own among them.
    ///
    /// * `the_first_item_is_a_reset` with all leases there are.
    /// * `a_watcher_sees_leases_come_change_and_go`, and `two_watchers_agree`.
    /// * A later [`LeaseEvent::Reset`] may come at any time and replaces everything known. A node serves the peers that it lacks for
    ///   [`bulk_removal_grace`](crate::NodeOptions::bulk_removal_grace) more, however consistent the store's lists are: one that was
    ///   restored from a backup lists consistently who was there then.
    /// * `a_watcher_that_falls_behind_misses_nothing`: it gets a reset, never a gap.
    /// * `an_entry_that_is_no_lease_costs_only_itself`: it is skipped and logged. Its subnet is not handed out.
    /// * After an `Err` the stream goes on by itself; it never ends. Whoever polls it waits a little first, so that an
    ///   implementation that fails at once costs nothing.
    /// * `dropping_a_watch_ends_its_work`.
    fn watch(&self) -> BoxStream<'static, Result<LeaseEvent, StoreError>>;

    /// Follows the network's configuration.
    ///
    /// * `the_config_is_watched`: the first item is what [`config`](Self::config) returns; then there is one for every change soon
    ///   after it, also if the configuration goes away ([`StoreError::ConfigMissing`]), cannot be used or comes back. Changes that follow
    ///   each other closely may be folded into the last one.
    /// * After an `Err` the stream goes on by itself; it never ends. Whoever polls it waits a little after other errors than those of
    ///   the configuration itself. The next item after such an error is what the configuration is then, changed or not.
    fn watch_config(&self) -> BoxStream<'static, Result<NetworkConfig, StoreError>>;
}

/// This node's hold on its subnet.
///
/// Dropping it does not give the subnet back: a node that restarts gets the same one.
#[cfg_attr(any(test, feature = "testing"), mockall::automock)]
#[async_trait]
pub trait SubnetLease: fmt::Debug + Send + Sync {
    /// The lease as we last wrote it.
    fn lease(&self) -> &Lease;

    /// How long the lease lasts after a renewal; `None` if it does not expire, as with a reservation. The holder may trust it
    /// for [`trusted_for`] after the renewal began.
    fn ttl(&self) -> Option<Duration>;

    /// Makes the lease last for another [`ttl`](Self::ttl), if it is still what we last wrote.
    ///
    /// # Errors
    ///
    /// [`StoreError::Revoked`] if it is not; then nothing was written. Else what keeps the store from answering.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the lease may or may not have been renewed; calling it again is safe.
    async fn renew(&mut self) -> Result<(), StoreError>;

    /// Publishes other attributes for the same subnet, and renews.
    ///
    /// # Errors
    ///
    /// As [`renew`](Self::renew).
    ///
    /// # Cancel safety
    ///
    /// If dropped, the attributes may or may not have been published; calling it again is safe.
    async fn publish(&mut self, attrs: &LeaseAttrs) -> Result<(), StoreError>;

    /// Gives the subnet back, if it is still ours. This is the only way to give it back before it expires.
    ///
    /// # Errors
    ///
    /// As [`renew`](Self::renew).
    async fn release(self: Box<Self>) -> Result<(), StoreError>;
}

/// How long the holder of a lease may trust it, from the beginning of the call on that took or last renewed it.
///
/// One percent less than `ttl`: quartz clocks differ by less than 0.02 %, and time synchronisation bends them by 0.05 % at most.
pub fn trusted_for(ttl: Duration) -> Duration {
    ttl - ttl / 100
}

/// Why a store cannot do what it was asked to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The network's configuration is there and cannot be used.
    #[error("the network config in {place} cannot be used")]
    Config {
        /// Where it was read.
        place: String,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// There is no network configuration.
    #[error(
        "no network config in {place}: write one there, such as {{\"Network\":\"10.244.0.0/16\"}}"
    )]
    ConfigMissing {
        /// Where it was looked for.
        place: String,
    },
    /// The store refuses us, and will again until somebody changes that.
    #[error("the store refuses to {operation}")]
    Denied {
        /// What we wanted, with its object.
        operation: String,
        /// The store's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Every subnet is taken.
    #[error("no subnet is free, release leases or enlarge the network")]
    Full {
        /// How many there are.
        #[source]
        source: NetworkFull,
    },
    /// Another node that lives has our name and holds a lease by it.
    #[error("another node{} is called {node} as well, give one of them another name", address.map_or_else(String::new, |at| format!(" at {at}")))]
    NodeIdInUse {
        /// The name.
        node: NodeId,
        /// Where the other node is.
        address: Option<IpAddr>,
    },
    /// Our lease is not there any more, or not ours.
    #[error(
        "{}",
        match owner {
            Some(owner) => format!("{owner} has the lease of {subnet} now"),
            None => format!("the lease of {subnet} is gone: it was deleted, or has expired"),
        }
    )]
    Revoked {
        /// The subnet that was ours.
        subnet: Subnet,
        /// Who has it now, as far as the store knows; `None` if nobody.
        owner: Option<NodeId>,
    },
    /// The store does not answer, or not in time.
    #[error("cannot {operation}")]
    Unavailable {
        /// What we wanted, with its object.
        operation: String,
        /// What came in between.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Whether waiting can help without anybody correcting our own settings.
    ///
    /// A missing configuration, a full network, a name in use and an absent store count as such: their cure happens elsewhere.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::ConfigMissing { .. }
            | Self::Full { .. }
            | Self::NodeIdInUse { .. }
            | Self::Unavailable { .. } => true,
            Self::Config { .. } | Self::Denied { .. } | Self::Revoked { .. } => false,
        }
    }
}
