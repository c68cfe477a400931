//! Peers served by an operator's own commands, as with flannel's `extension` backend.
//!
//! The network's configuration names shell commands, all of them optional:
//!
//! | key | is run | environment | standard input |
//! | --- | --- | --- | --- |
//! | `PreStartupCommand` | before there is a lease; its output is published as the lease's `BackendData` | | |
//! | `PostStartupCommand` | with the node's lease | `NETWORK`, `SUBNET`, `IPV6SUBNET`, `PUBLIC_IP`, `PUBLIC_IPV6` of this node | |
//! | `SubnetAddCommand` | for each peer | `SUBNET`, `IPV6SUBNET`, `PUBLIC_IP`, `PUBLIC_IPV6` of the peer | its `BackendData` |
//! | `SubnetRemoveCommand` | for each peer that left | as above | as above |
//! | `SubnetCheckCommand` | when the kernel's network state changes: 0 if the peer is still served | as above | as above |
//! | `ShutdownCommand` | by a teardown, after all peers were removed | as `PostStartupCommand` | |
//!
//! A variable without a value is empty. Commands are run by `sh -c` with the rights of the process. What a peer publishes reaches
//! them only by environment and standard input and is never a part of the shell's text.
//!
//! flannel runs a command once for each event. This backend runs them until the recorded peers are those that are wanted: a command
//! that fails is run again with exponential backoff, and a peer whose lease changed is removed as it was and added as it is. The
//! record is a file, so that a restart removes who left meanwhile and adopts the others; where a `PreStartupCommand` or
//! `PostStartupCommand` may have made the data path anew, it adds all again, or with a `SubnetCheckCommand` those that fail it.
//! Whoever was about to be added when the process ended is removed first. `SubnetCheckCommand` and `Timeout` (seconds that one
//! command may take, 30 unless given) are not flannel's.
#![forbid(unsafe_code)]

mod backend;
mod command;
mod config;
mod network;
mod plan;
mod record;

pub use backend::{Extension, remove_all};

/// The backend's name in leases and in the network's configuration.
const KIND: &str = "extension";
