//! A cluster on one machine: hosts as network namespaces on a switch, pods behind them, faults.
//!
//! What runs here is the real kernel with real packets. A [`Testbed`] provides hosts with an uplink, [`Pod`]s behind
//! them, [probes](probe) between any two, faults such as a partition, loss or a network card that is pulled, child
//! processes on hosts, and [`Snapshot`]s of what they left behind. It brings no routes between hosts: that is the work of
//! the nodes under test, which the caller runs in [`Host::namespace`] or with [`Host::spawn`].
//!
//! All namespaces are anonymous. Nothing has a name on this machine, and all of it vanishes with the process.
//!
//! It needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, or [`enter_user_namespace`], which gives them to an ordinary user; and a
//! tokio runtime with I/O and time, whose flavour does not matter. The answers to probes come from tasks of that runtime,
//! so a runtime that is blocked shows as slow answers.
//!
//! # Examples
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use flannel_testbed::{Blocks, Testbed, probe};
//!
//! let testbed = Testbed::new(3).await?;
//! let [a, b, c] = testbed.hosts() else { unreachable!() };
//! let (subnet_a, subnet_b): (Blocks, Blocks) = ("10.244.1.0/24".parse()?, "10.244.2.0/24".parse()?);
//! let pod_a = a.add_pod(subnet_a).await?;
//! let pod_b = b.add_pod(subnet_b).await?;
//!
//! // What a node would do:
//! a.add_route(subnet_b, b).await?;
//! b.add_route(subnet_a, a).await?;
//!
//! println!("{:?} to pod b and back", pod_a.ping(pod_b.ip()).await?.round_trip);
//! println!("{}", testbed.reachability().await);
//!
//! // Twenty probes per second through a partition of host a from the others.
//! let probes = probe::stream(&pod_a, pod_b.ip(), 20)?;
//! testbed.separate([a]).await?;
//! c.link_down().await?;
//! testbed.heal().await?;
//! tokio::time::timeout(Duration::from_secs(1), probes.flowing()).await?;
//! println!("{}", probes.stop().await);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod blocks;
mod built;
mod endpoint;
mod error;
mod etcd;
mod flanneld;
mod host;
mod kernel;
#[cfg(feature = "kube")]
pub mod kube;
mod loss;
mod meddler;
mod patience;
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
pub use built::{cni_plugins, wireguard_go};
pub use endpoint::Endpoint;
pub use error::TestbedError;
pub use etcd::Etcd;
pub use flanneld::{Flanneld, subnet};
pub use host::Host;
pub use meddler::Meddler;
pub use patience::{eventually, soon};
pub use pod::Pod;
pub use privileges::{Powerless, PrivilegeError, capable, enter_user_namespace};
pub use process::{Process, ProcessError};
pub use snapshot::Snapshot;
pub use testbed::{Builder, Testbed};
pub use uplink::OFFLOADS;
