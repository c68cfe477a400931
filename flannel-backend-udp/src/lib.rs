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
//!
//! # Engines
//!
//! Both have the TUN device, its address and the route of the network, as with flannel. With the userspace engine, threads of this
//! process carry packets between device and socket. With the eBPF engine, programs in the kernel carry them past both, at the speed
//! of the kernel's own tunnels and with no process running; the userspace engine stays behind them for what is unusual. It needs
//! `CAP_BPF` and `CAP_NET_ADMIN`, outside of user namespaces; with `CAP_SYS_ADMIN`, a restart takes over the programs that run, and
//! without it puts new ones in their place. [`Stats`] says which engine works, and why not the other.
//!
//! What differs: programs see datagrams before the firewall's input rules do. They send datagrams that routers may cut, where the
//! userspace engine tells the sender what size the path takes. Between virtual network cards that hand over large packets in one
//! piece, a packet that a program has unpacked is cut in software if a bridge is next, because the kernel still takes it for a
//! tunnel's.
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
