//! Leases in etcd, shared with flannel.

use flannel_core::NodeId;

use crate::registry_store::{LeaseOptions, RegistryStore};

mod client;
mod config;
mod config_key_watch;
mod connection;
mod dial;
mod endpoint_error;
mod etcd_registry;
mod etcd_watch;
mod event_fold;
mod keys;
mod lease_txn;
mod list;
mod proto;

pub use config::{EtcdConfig, EtcdConfigError, EtcdPassword, EtcdPem};
pub use etcd_registry::EtcdRegistry;

/// One node's store in etcd, version 3.4 or later, that it may share with nodes of flannel.
///
/// | key | what it holds |
/// | --- | --- |
/// | `PREFIX/config` | the network configuration, flannel's JSON |
/// | `PREFIX/subnet-owners/KEY` | the id of the node that wrote the lease at `KEY`; flannel does not read it |
/// | `PREFIX/subnets/KEY` | a lease, byte for byte as flannel writes it; `KEY` is flannel's, such as `10.5.1.0-24` |
///
/// Both keys of a lease are written in one transaction and attached to the same etcd lease, which ends with its TTL unless
/// it is renewed. A lease key without an etcd lease is a reservation: the node with its public address gets the subnet, and
/// it never gets a TTL. An owner counts only as long as nobody has written the lease alone, as flannel does.
///
/// # Fencing
///
/// A lease is created only if there is none at its key, and renewed, changed and released only if it is still what this node
/// wrote last. flannel itself overwrites whatever has its public address; the node that had the lease then learns of it with
/// its next renewal, and does not write over it.
///
/// # Time
///
/// The TTL is counted by etcd's leader, with its own clock that no setting of the time moves, and begins anew when the
/// leader changes. The clocks of nodes are not compared. A node that cannot renew has to take its lease for lost when the
/// TTL has gone by since the last renewal *began*; whoever else gets the subnet gets it later than that, if both clocks run
/// equally fast.
///
/// # Members
///
/// A node is connected to one of the endpoints, any of them at first, and takes the next one when that one cannot be
/// connected to within two seconds, fails, has no leader, or leaves a call without answer for five seconds. A watch notices a
/// member that hangs within ten. Files of certificates are read again for each connection. Where a password is used, the login is
/// renewed when etcd has forgotten it.
///
/// # Permissions
///
/// A role needs `readwrite` on all keys with the prefix; reading alone suffices for those who watch. One that is made for
/// flanneld, with rights to `config` and `subnets` alone, will do: a node then has its lease by its public address, as
/// flanneld's has, and not by its id. It gets another subnet when its address changes while it is down.
///
/// # Runtime
///
/// Calls and watches need a tokio runtime with time and I/O enabled, and panic without.
pub type EtcdStore = RegistryStore<EtcdRegistry>;

impl EtcdStore {
    /// The store that `config` describes, as `node` uses it. It reads the certificates and connects with the first call.
    ///
    /// # Errors
    ///
    /// [`EtcdConfigError`].
    pub fn open(
        config: &EtcdConfig,
        node: NodeId,
        options: LeaseOptions,
    ) -> Result<Self, EtcdConfigError> {
        Ok(Self::new(EtcdRegistry::new(config)?, node, options))
    }
}
