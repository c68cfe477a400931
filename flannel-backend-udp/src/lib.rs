//! IP in UDP, on flannel's wire: for hosts where vxlan is not available or not allowed.
//!
//! A packet to a peer's pod becomes the whole payload of one UDP datagram to the peer's public address: no header, no encryption.
//! Both kinds of node share a cluster.
//!
//! # Options
//!
//! Members of `Backend` in the network's configuration, in any case:
//!
//! | member | default | meaning |
//! | --- | --- | --- |
//! | `Port` | 8285 | the UDP port; equal on all nodes |
//! | `SourceCheck` | true | take packets only from known peers, and only with a source inside of that peer's subnet |
//! | `Engine` | `auto` | `ebpf`, `userspace`, or `auto`: eBPF where the kernel allows it |
//!
//! flannel knows `Port` alone and ignores the others.
#![deny(unsafe_code)]

mod backend;
mod bpf;
mod checksum;
mod config;
mod device;
mod ebpf;
mod engine;
mod icmp;
mod join;
mod network;
#[cfg(test)]
mod packets;
mod plan;
mod pump;
mod segment;
mod snapshot;
mod socket;
mod stats;
mod table;
mod tun;
mod verdict;
mod wire;

pub use backend::Udp;
pub use stats::{Engine, Features, Stats, Traffic};
pub use verdict::DropReason;

/// The backend's name in the network's configuration. Leases carry none, as flannel's do not.
const KIND: &str = "udp";
