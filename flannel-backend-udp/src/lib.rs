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
//! Datagrams from addresses that are no peer's; with `SourceCheck` `subnet`, packets whose source is not inside of the subnet of the peer
//! that sent them; packets that are not whole, end too early or too late, name the routers to pass, or may pass no other. [`DropReason`] has all
//! reasons, and [`Udp::stats`] counts them, also for each peer.
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
//! | `MTU` | that of the network card | the largest packet between hosts, bytes |
//! | `SourceCheck` | `peer` | `peer`: packets of known peers; `subnet`: those with a source inside of the peer's subnet; `none`: anybody's |
//! | `Engine` | `auto` | `ebpf`, `userspace`, or `auto`: `ebpf` where the self-test passes, else `userspace` |
//! | `PathMTUDiscovery` | true | between IPv4 hosts, keep routers from cutting datagrams whose packets may not be cut; those of threads, all of them |
//!
//! flannel knows `Port` alone and ignores the others. `MTU` may change while a network runs.
//!
//! # Engines
//!
//! Both have the TUN device, its address and the route of the network, as with flannel. With the userspace engine, threads of this
//! process carry packets between device and socket. With the eBPF engine, tc programs on the tunnel device and on the uplink carry
//! what goes between two nodes that both have it, also while no process runs. Conntrack, NAT and the firewall see the packets on the
//! tunnel device with both. The userspace engine stays behind the programs, for peers with another engine, such as flanneld, and for
//! what is unusual. The programs need Linux 5.12, `CAP_BPF` and `CAP_NET_ADMIN`, outside of user namespaces. [`Stats`] says which
//! engine works, and why not the other.
//!
//! Programs see datagrams before the host's firewall does, and what they send leaves behind it. TCP that was handed over in one piece,
//! as veth does, is segmented in software where a bridge is next: until a kernel can be told that a packet is not a tunnel's any more,
//! it keeps that mark.
//!
//! # Why the kernel's own FOU is no engine
//!
//! On Linux 6.1 and 6.12, an `ipip` device with `encap fou` sends flannel's datagrams (but for the hop that the tunnel costs there), and
//! `ip fou add` receives them, from known peers alone. But it takes a device for each peer: 1,000 took 55 MB. One device for all
//! (`external`, and routes with `encap ip`) sends IP in IP without UDP, unless a BPF program asks for the UDP of each packet (Linux 6.4), and who may
//! have BPF has the other engine. `ipip` carries no IPv6, so a peer with both families takes two devices and another way to receive. The
//! port is the kernel's: there is no socket behind it that takes what is unusual, tells senders, or counts.
//!
//! # Why the kernel's bareudp is no engine
//!
//! A device of that kind (Linux 5.7) sends and receives the datagrams of all peers, in both families, by routes with `encap ip`. The
//! host's firewall sees them as it sees vxlan's. Where it receives, packets lose the mark, and TCP between pods is as fast as with
//! vxlan. But no kernel of Debian 12 has it, 6.1 or 6.12. Built for 6.1, it leaves inner checksums to the uplink, as FOU does, and veth
//! leaves them unfinished: peers that read a socket, such as flanneld, answer pings, and no TCP connects. With `tx off` the device
//! finishes them, and carries a third of the TCP. No userspace engine fits beside it for such peers and for what is unusual, because
//! the port is the device's. It is the port of all peers, it takes datagrams from anybody, and routers cut those that it sends, so that
//! pods do not learn the path MTU. Where the uplink cannot segment a tunnel's packets, IPv6 is segmented as if it were IPv4, and lost.
//!
//! # The self-test
//!
//! With `auto`, programs are attached to the node's devices only after they have carried packets between two network namespaces that
//! the backend makes for that: TCP in large packets, UDP datagrams that are sent as one, and TCP with a translated source
//! ([`Udp::with_masquerade`]), over each family of the network. It runs once, on a thread of its own, before the lease is published,
//! and takes at most [`SelfTest::LIMIT`]; nothing of it is left. It needs `CAP_SYS_ADMIN` for the namespaces
//! ([`Udp::begin_self_test`]). Where it fails or cannot be tried, the userspace engine carries all packets, and a line of the log says
//! why. One that failed is repeated with the first sync after a minute. With `ebpf` it is only reported.
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
mod bpf;
mod config;
mod ebpf;
mod engine;
mod forwarder;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod icmp;
mod network;
mod peer_stats;
mod plan;
mod self_test;
mod stats;
mod table;
mod verdict;

pub use backend::Udp;
pub use peer_stats::PeerStats;
pub use plan::uses_ebpf;
pub use self_test::{Masquerade, SelfTest, SelfTestError};
pub use stats::{Engine, Features, Stats, Traffic};
pub use verdict::DropReason;

/// The backend's name in the network's configuration. Leases carry none, as flannel's do not.
const KIND: &str = "udp";
