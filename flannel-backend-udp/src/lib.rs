//! IP in UDP, on flannel's wire: for hosts where vxlan is not available or not allowed.
//!
//! A packet to a peer's pod becomes the whole payload of one UDP datagram to the peer's public address: no header, no encryption.
//! It is the same on the wire as flannel's, so both kinds of node share a cluster. As with flannel a way through the tunnel costs
//! two hops, and a lease carries the public address only.
//!
//! # The userspace engine
//!
//! Packets to the network are routed into a TUN device, `flannel0`, and threads of this process carry them on. Large packets pass
//! the device and the sockets as one where the kernel has that, and datagrams that came together are joined again where they
//! belong to one flow.
//!
//! The device stays when the process ends, and the next run takes it over. When the next run starts beside the old one, even in
//! the same process, the old engine stops once the new one carries packets. So a dropped network leaves its engine running, until
//! it is taken over, torn down, or the process ends.
//!
//! # What is dropped
//!
//! Datagrams from addresses that are no peer's; packets whose source is not inside of the subnet of the peer that sent them;
//! packets that are not whole, end too early or too late, name the routers to pass, or may pass no other. [`DropReason`] has all
//! reasons, and [`Udp::stats`] counts them.
//!
//! # What senders are told
//!
//! That no peer has a destination (ICMP net unreachable, byte for byte flannel's, never to ICMP itself), and that a packet is
//! larger than the way to the peer takes (fragmentation needed, packet too big). Each thread gives at most 1000 answers a second.
//! What may be cut is sent in fragments instead. How large that is, routers tell the host. Where they do not, whoever finds it out
//! can say so ([`Udp::with_paths`]), or routers are let cut datagrams (`PathMTUDiscovery`), which costs the peer their assembly.
//!
//! # Options
//!
//! Members of `Backend` in the network's configuration, in any case:
//!
//! | member | default | meaning |
//! | --- | --- | --- |
//! | `Port` | 8285 | the UDP port; equal on all nodes |
//! | `SourceCheck` | true | take packets only from known peers, and only with a source inside of that peer's subnet |
//! | `Engine` | `auto` | `ebpf` or `userspace`; `auto` means userspace |
//! | `PathMTUDiscovery` | true | between IPv4 hosts, keep routers from cutting datagrams whose packets may not be cut; those of threads, all of them |
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
//! The eBPF engine runs by explicit choice only: it loses packets that are NATed on the way into the tunnel (NodePort, masquerading,
//! services reached from the host), and TCP connections with peers that run flanneld. Its programs see datagrams before the firewall's
//! input rules do.
//!
//! TCP packets that a program has received take a detour through a VXLAN device on loopback, `flannel-in` with the port as number:
//! the kernel then joins segments, and hands large packets on in one piece, as it does for its own tunnels. Rules see these
//! packets come by `flannel0` like all others. Where there is no VXLAN or no IPv6 on loopback, or a firewall is in the way, TCP goes
//! without, as the log says, and is cut in software where it was handed over in one piece and a bridge is next.
//!
//! # Examples
//!
//! ```no_run
//! use flannel_backend::{UplinkFinder, UplinkOptions};
//! use flannel_backend_udp::Udp;
//! use flannel_core::{NetworkConfig, Node};
//! use flannel_netlink::Namespace;
//!
//! # async fn run(store: impl flannel_core::Store) -> Result<(), Box<dyn std::error::Error>> {
//! let config: NetworkConfig = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}"#.parse()?;
//! let uplink = UplinkFinder::new(&Namespace::current()?, &config, &UplinkOptions::default())?;
//! Node::new(store, Udp::new(&config, uplink)?).run().await?;
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod backend;
mod batch;
mod bpf;
mod checksum;
mod config;
mod device;
mod ebpf;
mod engine;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
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
pub use stats::{EbpfFeatures, Engine, Features, Meter, Stats, Traffic};
pub use verdict::DropReason;

/// The backend's name in the network's configuration. Leases carry none, as flannel's do not.
const KIND: &str = "udp";
