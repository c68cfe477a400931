//! Peers behind the kernel's VXLAN.
//!
//! Packets to a peer's pods go through a device, `flannel.VNI` for IPv4 and `flannel-v6.VNI` for IPv6 (`fl-v4.VNI` and `fl-v6.VNI` where
//! the kernel takes no name of that length), which wraps them into UDP
//! packets to the peer's public address. Hosts need no common link. It is the same on the wire as flannel's, so both kinds of
//! node share a cluster.
//!
//! The devices are not bound to the network card, so they survive when it is made anew. They are part of what a sync makes match:
//! whatever becomes of them, they are back with the Ethernet address that peers know. That address comes from the device that is
//! there, else from the previous lease, else it is derived from the node's name. Whoever sets another one finds it put back, 20
//! times at once and 20 times a second for as long as it goes on; only if the kernel refuses it is the one that the device has
//! published instead.
//!
//! # Options
//!
//! Members of `Backend` in the network's configuration, in any case:
//!
//! | member | default | meaning |
//! | --- | --- | --- |
//! | `VNI` | 1 | the network's identifier, 24 bits; equal on all nodes |
//! | `Port` | the kernel's, 8472; a device that is there keeps its own | the UDP port; equal on all nodes |
//! | `MTU` | that of the network card | the largest packet between hosts, bytes; pods get 50 less over IPv4, 70 less over IPv6 |
//! | `GBP` | false | carry group policy marks |
//! | `Learning` | false | learn Ethernet addresses from packets |
//! | `DirectRouting` | false | plain routes to peers on the same link, VXLAN to all others |
//!
//! `MTU`, `Learning` and `DirectRouting` may change while a network runs.
//!
//! # Examples
//!
//! ```no_run
//! use flannel_backend::{UplinkFinder, UplinkOptions};
//! use flannel_backend_vxlan::Vxlan;
//! use flannel_core::{NetworkConfig, Node};
//! use flannel_netlink::Namespace;
//! use flannel_store::MemoryCluster;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config: NetworkConfig = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#.parse()?;
//! let uplink = UplinkFinder::new(&Namespace::current()?, &config, &UplinkOptions::default())?;
//! let store = MemoryCluster::new(&config).store("node-1".parse()?);
//! Node::new(store, Vxlan::new(&config, uplink)?).run().await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod backend;
mod config;
mod device;
mod family;
mod lease_data;
mod mac;
mod mac_owners;
mod network;
mod plan;
mod underlay;
mod vni;

pub use backend::Vxlan;

/// The backend's name in leases and in the network's configuration.
const KIND: &str = "vxlan";
