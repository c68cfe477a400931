//! Where the leases of a container network live: any key-value database.
//!
//! * [`Allocating`] makes a [`Store`](flannel_core::Store) of anything that implements the small trait [`Registry`].
#![forbid(unsafe_code)]

mod allocating;
mod registry;

pub use allocating::{Allocating, Options, Stats};
pub use registry::{
    Change, ConfigText, Lifetime, Record, Registry, RegistryError, Skipped, Snapshot, Write,
};
