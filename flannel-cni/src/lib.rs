//! CNI plugins: what a container runtime runs to connect a container to the node's network.
//!
//! The program `flannel-cni` holds them all; a runtime finds each under its own name. A runtime, or a host of microVMs, can call them
//! in process as well: make a [`Call`] and [`execute`] it.
//!
//! * [`protocol`]: the configuration, the environment, results and errors of every version of the specification. Pure.
//! * [`Plugin`]: which plugins there are, and what each does for a verb.
//! * [`Store`]: the addresses of a network of this node, in the folder that containernetworking's `host-local` keeps.
//!
//! # Examples
//!
//! ```no_run
//! use flannel_cni::{
//!     Call, Plugin, execute,
//!     protocol::{Config, Environment, Verb},
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let environment = Environment {
//!     verb: Verb::Add,
//!     container_id: "vm-1".into(),
//!     netns: Some("/run/netns/vm-1".into()),
//!     interface: "lo".into(),
//!     ..Environment::default()
//! };
//! let config = Config::parse(br#"{"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}"#)?;
//! let result = execute(Plugin::Loopback, &Call::new(environment, config)?).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod bridge;
mod delegate;
mod flannel;
#[doc(hidden)]
pub mod fuzzing;
mod host_local;
mod install;
mod kernel;
mod listing;
mod loopback;
mod plugin;
mod portmap;
pub mod protocol;
mod rules;
mod sandbox;

pub use flannel::SubnetEnv;
pub use host_local::{
    Entry, Owner, PodName, Range, RangeSet, Store, StoreError, entries_in, kept_in,
};
pub use install::{InstallError, Installed, install, uninstall};
pub use listing::list;
pub use plugin::{Call, Plugin, execute};
