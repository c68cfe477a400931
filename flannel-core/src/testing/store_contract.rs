//! The contract of [`Store`] as tests that every implementation runs.

use std::{collections::BTreeMap, future::Future, net::Ipv4Addr, sync::Arc, time::Duration};

use crate::{lease::LeaseAttrs, store::Store};

pub mod acquiring;
pub mod watching;

/// One fresh store with one network, as a test sees it from all sides.
///
/// Dropping it frees whatever is behind it.
#[expect(async_fn_in_trait, reason = "each test drives it on its own thread")]
pub trait StoreFixture: Sized {
    /// An empty store with the network configuration `config`, flannel's JSON.
    async fn build(config: &str) -> Self;

    /// A new handle of the node with the id `node`, as after a restart of it.
    async fn store(&self, node: &str) -> Arc<dyn Store>;

    /// Writes `value` at `key` past the store, as a person does: without an owner or an expiry.
    async fn put(&self, key: &str, value: &str);

    /// Removes what is at `key` past the store, if there is anything.
    async fn remove(&self, key: &str);

    /// Everything that is stored under the leases, whether it is a lease or not.
    async fn entries(&self) -> BTreeMap<String, Entry>;

    /// Replaces the network's configuration past the store; `None` removes it.
    async fn set_config(&self, config: Option<&str>);

    /// Makes watchers that are not polled at this time fall behind for good, if this store's watchers can.
    async fn outrun(&self);

    /// How many watches of this store are at work.
    async fn open_watches(&self) -> usize;
}

/// What is stored at a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The value, byte for byte.
    pub value: String,
    /// Whether it goes away unless it is renewed.
    pub expires: bool,
}

/// Expands to one test per clause of [`Store`], each run on a fresh `$fixture`, a [`StoreFixture`].
///
/// For stores in memory time is paused. A store that does real I/O says `real_time`: with paused time the runtime would look
/// idle while it waits, and every timeout would fire. Attributes before the fixture go to every test.
///
/// A store in which somebody else chooses the subnets, as a cluster's controllers do, says `@publish_and_watch`: it has the clauses
/// about publishing, losing and following leases, and none about how subnets are taken.
///
/// The crate that expands it needs `tokio` with the features `macros`, `rt` and `test-util`.
///
/// ```text
/// flannel_core::store_conformance!(Memory);
/// flannel_core::store_conformance!(#[ignore = "needs etcd: run ./ci.sh etcd"] Etcd, real_time);
/// flannel_core::store_conformance!(@publish_and_watch Cluster, real_time);
/// ```
#[macro_export]
macro_rules! store_conformance {
    ($(#[$attribute:meta])* $fixture:ty) => {
        $crate::store_conformance!(@all [$(#[$attribute])* #[tokio::test(start_paused = true)]] $fixture);
    };
    ($(#[$attribute:meta])* $fixture:ty, real_time) => {
        $crate::store_conformance!(@all [$(#[$attribute])* #[tokio::test]] $fixture);
    };
    (@publish_and_watch $fixture:ty, real_time) => {
        $crate::store_conformance!(@publish_and_watch_with [#[tokio::test]] $fixture);
    };
    (@publish_and_watch_with $attributes:tt $fixture:ty) => {
        $crate::store_conformance!(@each $attributes $fixture, acquiring:
            a_network_without_a_usable_config_says_so
            a_node_keeps_its_subnet
            a_release_gives_the_subnet_back
            previous_is_what_the_node_holds
        );
        $crate::store_conformance!(@each $attributes $fixture, watching:
            a_renewal_disturbs_nobody
            a_watcher_sees_leases_come_change_and_go
            a_watcher_that_falls_behind_misses_nothing
            dropping_a_watch_ends_its_work
            the_config_is_watched
            the_first_item_is_a_reset
            two_watchers_agree
        );
    };
    (@all $attributes:tt $fixture:ty) => {
        $crate::store_conformance!(@publish_and_watch_with $attributes $fixture);
        $crate::store_conformance!(@each $attributes $fixture, acquiring:
            a_full_network_says_so
            a_renewal_of_a_lost_lease_is_revoked
            a_reservation_is_honoured_and_never_expires
            a_subnet_fits_the_network
            dropping_a_lease_keeps_it
            dropping_acquire_midway_leaves_at_most_our_lease
            ipv6_and_dual_stack_networks_are_served
            two_nodes_never_share_a_subnet
        );
        $crate::store_conformance!(@each $attributes $fixture, watching:
            an_entry_that_is_no_lease_costs_only_itself
        );
    };
    (@each $attributes:tt $fixture:ty, $group:ident: $($clause:ident)+) => {
        $($crate::store_conformance!(@one $attributes $fixture, $group, $clause);)+
    };
    (@one [$($attributes:tt)*] $fixture:ty, $group:ident, $clause:ident) => {
        $($attributes)*
        async fn $clause() {
            $crate::testing::store_contract::$group::$clause::<$fixture>().await;
        }
    };
}

/// 255 subnets of 256 addresses.
const ROOMY: &str = r#"{"Network":"10.3.0.0/16"}"#;

/// Three subnets: `10.3.0.4-30`, `10.3.0.8-30` and `10.3.0.12-30`.
const TINY: &str = r#"{"Network":"10.3.0.0/28"}"#;

/// What a node at `192.0.2.last` publishes.
fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(192, 0, 2, last)),
        backend_type: "host-gw".into(),
        ..LeaseAttrs::default()
    }
}

/// The output of `future`, which must be there soon: long enough for a loaded machine, short enough for a person.
async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let deadline = Duration::from_secs(20);
    let output = tokio::time::timeout(deadline, future).await;
    output.unwrap_or_else(|_| panic!("{what}: not within {deadline:?}"))
}
