//! Where the leases of a container network live: any key-value database.
#![forbid(unsafe_code)]

mod registry;

pub use registry::{
    Change, ConfigText, Lifetime, Record, Registry, RegistryError, Skipped, Snapshot, Write,
};
