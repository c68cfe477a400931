//! A cluster on one machine: hosts as network namespaces on a switch, pods behind them, faults.
#![forbid(unsafe_code)]

mod blocks;
mod endpoint;
mod error;
mod host;
mod kernel;
mod loss;
mod meddler;
mod pod;
mod privileges;
pub mod probe;
mod process;
mod settings;
mod snapshot;
mod switch;
mod testbed;
mod uplink;

pub use blocks::{Blocks, InvalidBlocks};
pub use endpoint::Endpoint;
pub use error::TestbedError;
pub use host::Host;
pub use meddler::Meddler;
pub use pod::Pod;
pub use privileges::{PrivilegeError, capable, enter_user_namespace};
pub use process::{Process, ProcessError};
pub use snapshot::Snapshot;
pub use testbed::{Builder, Testbed};
