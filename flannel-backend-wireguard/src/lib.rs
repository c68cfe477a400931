//! Peers behind WireGuard: packets between hosts are encrypted and authenticated, by the kernel or by threads of this process.
//!
//! It equals flannel's on the wire, so nodes of both share a cluster. So do its leases, but in modes other than `separate` the port in
//! those for IPv6 is `ListenPort`, where the device listens; flannel's is `ListenPortV6`. Each node has a key pair, and its lease tells
//! peers the public key and the UDP port. A route leads the whole network into the device `flannel-wg`, which sends a packet to the
//! peer whose subnet it is for, and drops it if there is none. It also drops packets from a peer whose source is not in the peer's
//! subnet.
//!
//! Devices, keys, ports and peers are what a sync makes match. The kernel sends no notifications of them, so the network reads them
//! twice a second. Of two leases that contradict each other, the newer one counts, as with flannel, and the other one is named in the
//! report. The endpoint of a peer is what its lease says; when the peer's packets come from elsewhere, as behind NAT, the
//! kernel follows them until the lease changes. A peer that does not answer is named in the report. A restart adopts devices as they
//! are, so that sessions continue.
//!
//! # Engines
//!
//! Where the kernel has the module `wireguard` (Linux 5.6), it does all that. Where it has not, or `Engine` says so, `flannel-wg` is a TUN
//! device, and threads of this process encrypt and decrypt with boringtun's state machine. Both are the same on the wire, and to who reads
//! reports. Each queue of the device has a thread for each direction; a thread holds a peer for one batch, so that the two directions of one peer
//! wait for each other for at most 64 packets. One flow of one peer is encrypted by one thread. Above 1000 handshakes a second, senders have
//! to prove their address first (cookies). [`Backend::report`](flannel_core::Backend::report) names the engine and counts what became of packets.
//!
//! The device stays when the process ends, and the next run takes it over, also from one that still runs. Keys of sessions are lost by that: both
//! ends make new ones as soon as either has a packet for the other. Packets to addresses of no peer are dropped, and their senders are not
//! told. Private keys are overwritten when they are dropped; boringtun's copies of the preshared key and of session keys are not.
//!
//! # The private key
//!
//! The private key is in a file that only its owner can read; it is created when it is missing.
//!
//! # Options
//!
//! Members of `Backend` in the network's configuration, in any case, as flannel's but for `Engine`:
//!
//! | member | default | meaning |
//! | --- | --- | --- |
//! | `ListenPort` | 51820 | the UDP port, not 0 |
//! | `ListenPortV6` | 51821 | the UDP port of the second device that `separate` makes for IPv6 |
//! | `MTU` | that of the network card | the largest packet between hosts, bytes; pods get 80 less |
//! | `Mode` | `separate` | `separate`: a device for each family of pods, over the same family. Others: one device for both, over IPv4 (`ipv4`), over IPv6 (`ipv6`), or over the family in which the peer has a public address, IPv4 if in both or in neither (`auto`). Of our own addresses, those of the network card count for that |
//! | `PSK` | none | a key that all nodes share, in base64 as `wg genpsk` prints it |
//! | `Engine` | `auto` | `kernel`, `userspace`, or `auto`: the kernel if it has WireGuard. flannel ignores it |
//! | `PersistentKeepaliveInterval` | 0 | seconds after which an idle peer is sent a packet, so that NAT on the path keeps its mapping; 0 for never |
//!
//! `MTU` and `PersistentKeepaliveInterval` may change while a network runs.
//!
//! # Examples
//!
//! ```no_run
//! use flannel_backend::{UplinkFinder, UplinkOptions};
//! use flannel_backend_wireguard::Wireguard;
//! use flannel_core::{NetworkConfig, Node};
//! use flannel_netlink::Namespace;
//! use flannel_store::MemoryCluster;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config: NetworkConfig = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}"#.parse()?;
//! let uplink = UplinkFinder::new(&Namespace::current()?, &config, &UplinkOptions::default())?;
//! let store = MemoryCluster::new(&config).store("node-1".parse()?);
//! Node::new(store, Wireguard::new(&config, uplink, "/run/flannel/wgkey")?).run().await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod arrivals;
mod backend;
mod config;
mod device;
mod difference;
mod engine;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod handshakes;
mod key_file;
mod lease_data;
mod network;
mod outer;
mod plan;
mod tunnel_peers;
mod userspace;

pub use backend::Wireguard;
pub use outer::outer_flow;

/// All devices of the backend, by either of its names: a pattern of iptables.
pub const DEVICES: &str = "flannel-wg+";

/// The backend's names in leases and in the network's configuration: flannel's, and the one that a network moves to, and back, for new keys.
pub const NAMES: [&str; 2] = [KIND, "wireguard-2"];

/// The first name, and the kernel's for its devices.
const KIND: &str = "wireguard";
