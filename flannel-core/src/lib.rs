//! The domain of a routed container network, without I/O.
#![forbid(unsafe_code)]

mod alloc;
mod backend;
mod backoff;
mod cidr;
mod config;
mod fault;
mod fields;
mod identity;
mod lease;
mod migration;
mod node;
mod notice;
mod peer_fault;
mod peers;
mod public_address;
mod random;
mod report;
mod store;
mod subnet;
mod subnet_env;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use alloc::{NetworkFull, choose};
pub use backend::{Backend, BackendError, Network};
pub use backoff::Backoff;
pub use cidr::{Cidr, SubnetRange};
pub use config::{Adopted, BackendConfig, ConfigError, NetworkConfig, NetworkConfigBuilder};
pub use fault::{Activity, Fault, FaultKind, error_chain};
pub use fields::{FieldError, Fields};
pub use identity::{InvalidNodeId, NodeId};
pub use lease::{
    InvalidJson, Lease, LeaseAttrs, LeaseError, LeaseEvent, MAX_LEASE_BYTES, RawJson,
    SecondBackend, SecondRole,
};
pub use migration::{BackendSource, Migrating, MigrationOptions, MigrationRecord, Place, Recorded};
pub use node::{
    Liveness, Node, NodeError, NodeHandle, NodeOptions, OnLeaseLoss, Repair, Status, Stopped,
    Totals,
};
pub use notice::Notice;
pub use peer_fault::{Family, PeerFault, PeerProblem};
pub use peers::{FoldOutcome, NetworkShare, Peers, Revision, RouteScope};
pub use public_address::{UnusableAddress, check_chosen_address, check_published};
pub use random::SplitMix64;
pub use report::{
    BackendReport, MigrationReport, Repaired, RoutingMode, SyncReport, Transport, WaitingPeer,
    Warning,
};
pub use store::{Store, StoreError, SubnetLease, trusted_for};
pub use subnet::{InvalidSubnetKey, Subnet};
pub use subnet_env::SubnetEnv;
