//! Peers behind the kernel's VXLAN.
#![forbid(unsafe_code)]

mod backend;
mod claims;
mod config;
mod defence;
mod device;
mod family;
mod lease_data;
mod mac;
mod network;
mod plan;
mod underlay;
mod vni;

pub use backend::Vxlan;

/// The backend's name in leases and in the network's configuration.
const KIND: &str = "vxlan";
