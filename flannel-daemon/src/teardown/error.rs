//! Why something was not taken down.

use std::path::PathBuf;

use flannel_core::{BackendError, NodeId, StoreError, Subnet};
use flannel_firewall::FirewallError;
use flannel_netlink::{KernelError, NamespaceError, OpenError};

use crate::{
    FileError, InvalidOptions, OpenStoreError,
    operate::{OperateError, shown},
};

/// Why something was not taken down. Another attempt goes on where this one ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TeardownError {
    /// The addresses of this host cannot be listed.
    #[error("cannot list addresses")]
    Addresses(#[from] KernelError),
    /// The kernel refuses something, or the backend cannot work with the network.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A file cannot be removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Rules cannot be removed.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The options, or those of the network, cannot be used.
    #[error(transparent)]
    InvalidOptions(#[from] InvalidOptions),
    /// Nothing of the backend carries packets without its process.
    #[error(
        "the {backend} backend leaves nothing that carries packets without its process: leave out --keep-traffic"
    )]
    KeepsNothing {
        /// The backend.
        backend: String,
    },
    /// Two backends carry the packets of this node, and flanneld has one.
    #[error(
        "this node is on its way from {from} to {to}: start it again, and try again when flannel-node status shows no migration any more"
    )]
    Migrating {
        /// The backend from before.
        from: String,
        /// The network's backend.
        to: String,
    },
    /// Our network namespace cannot be opened.
    #[error("cannot open our own network namespace")]
    Namespace(#[from] NamespaceError),
    /// The kernel cannot be asked.
    #[error("cannot ask the kernel of this host")]
    Netlink(#[from] OpenError),
    /// The store has not the lease whose traffic is to be kept.
    #[error(
        "the store has no lease {subnet}, so flanneld would take another subnet: leave out --keep-traffic"
    )]
    NoLease {
        /// The subnet in the subnet file.
        subnet: Subnet,
    },
    /// Neither the subnet file nor the store names the network.
    #[error("{} names no network, and the store does not either: give --network", subnet_file.display())]
    NoNetwork {
        /// The subnet file.
        subnet_file: PathBuf,
        /// What the store says.
        #[source]
        source: StoreError,
    },
    /// A node runs.
    #[error(
        "a node runs with {} and would build all of it again: stop it first", subnet_file.display()
    )]
    NodeRuns {
        /// Its subnet file.
        subnet_file: PathBuf,
    },
    /// The subnet file names no subnet.
    #[error("{} names no subnet: use flannel-node leases release to give one back", subnet_file.display())]
    NoSubnet {
        /// The subnet file.
        subnet_file: PathBuf,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    OpenStore(#[from] OpenStoreError),
    /// The lease looks like another node's.
    #[error(
        "{subnet} is leased to {}, which does not look like this node: use flannel-node leases release {subnet}",
        shown(holder.as_ref())
    )]
    OtherNode {
        /// The lease.
        subnet: Subnet,
        /// The node, if it is known by name.
        holder: Option<NodeId>,
    },
    /// The lease is not given back.
    #[error(transparent)]
    Release(#[from] OperateError),
    /// The network or its leases cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is silent.
    #[error("the store does not say which leases there are: see that it is up")]
    StoreSilent,
}
