//! Where the leases of a container network live: memory, a shared folder, and any key-value database.
//!
//! * `EtcdStore` is for clusters with etcd, also those of flannel (feature `etcd`).
//! * [`FileStore`] is for many processes on one machine (feature `file`).
//! * `KubernetesStore` is for nodes of a Kubernetes cluster, also beside flannel's (feature `kubernetes`).
//! * [`MemoryStore`] is for tests and for clusters inside of one process.
//! * [`RegistryStore`] makes a [`Store`](flannel_core::Store) of anything that implements the small trait [`Registry`].
#![forbid(unsafe_code)]

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "file")]
mod file;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod memory;
mod registry;
mod registry_store;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdConfigError, EtcdPassword, EtcdPem, EtcdRegistry, EtcdStore};
#[cfg(feature = "file")]
pub use file::{FileRegistry, FileStore, InitError};
#[cfg(feature = "kubernetes")]
pub use kubernetes::{
    InvalidAnnotationPrefix, KubernetesOptions, KubernetesStore, NetworkCondition, NetworkSource,
    NodeEvents, NodeName, NodeNameError,
};
pub use registry_store::{
    LeaseOptions, RegistryStore, StoreStats, network_config, watch_network_config,
};
/// Parsers of what is stored, for fuzzers.
#[cfg(all(feature = "file", feature = "testing"))]
pub mod fuzzing {
    pub use crate::file::fuzzing::reprint;
}
pub use memory::{MemoryCluster, MemoryRegistry, MemoryStore};
pub use registry::{
    Change, ConfigText, Lifetime, NewRecord, Record, RecordError, Registry, RegistryError, Snapshot,
};
