//! Where the leases of a container network live: memory, and any key-value database.
//!
//! * [`MemoryStore`] is for tests and for clusters inside of one process.
//! * [`Allocating`] makes a [`Store`](flannel_core::Store) of anything that implements the small trait [`Registry`].
#![forbid(unsafe_code)]

mod allocating;
mod memory;
mod registry;

pub use allocating::{Allocating, Options, Stats};
pub use memory::{Cut, MemoryCluster, MemoryRegistry, MemoryStore};
pub use registry::{
    Change, ConfigText, Lifetime, Record, Registry, RegistryError, Skipped, Snapshot, Write,
};
