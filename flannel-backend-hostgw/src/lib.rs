//! Peers as next hops: plain routes between hosts on one link.
//!
//! Nothing is added to packets, so pods may send as much as the link takes. All hosts must share a
//! link: a route leads to each peer's subnet through the peer's own address. A peer that is not on
//! the link is refused by the kernel, and named in the report.
//!
//! # Options
//!
//! Members of `Backend` in the network's configuration, in any case:
//!
//! | member | default | meaning |
//! | --- | --- | --- |
//! | `MTU` | that of the network card | the largest packet between hosts, bytes, if the card takes more; flannel has no such option |
//!
//! # Examples
//!
//! ```no_run
//! use flannel_backend::{UplinkFinder, UplinkOptions};
//! use flannel_backend_hostgw::HostGw;
//! use flannel_core::{NetworkConfig, Node};
//! use flannel_netlink::Namespace;
//! use flannel_store::MemoryCluster;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config: NetworkConfig = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#.parse()?;
//! let uplink = UplinkFinder::new(&Namespace::current()?, &config, &UplinkOptions::default())?;
//! let store = MemoryCluster::new(&config).store("node-1".parse()?);
//! Node::new(store, HostGw::new(&config, uplink)?).run().await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod backend;
mod network;
mod plan;

pub use backend::HostGw;

/// The backend's name in leases and in the network's configuration.
const KIND: &str = "host-gw";
