//! Probes the path to each peer: how large packets may be, and whether checksums arrive intact.
//!
//! Two things break networks of containers silently. Packets that are larger than some link on the path get lost without a word, so
//! that connections open and then hang. And checksums that the kernel leaves to the hardware are damaged or never computed inside of
//! tunnels, so that packets get lost on arrival. Both depend on what is between two hosts, so only packets between them tell.
//!
//! A [`Prober`] probes each peer with UDP datagrams and answers the probes of its peers:
//!
//! * one as large as what should pass, which nobody may cut. If it gets lost while small ones arrive, the largest size that passes is
//!   searched for;
//! * one whose checksum is left to the hardware beside one whose checksum the kernel has computed, on the path between the hosts and
//!   inside of the tunnel. If in two rounds only the latter arrive, checksums are [corrupted](Checksums::Corrupted).
//!
//! What it finds are [`Findings`]; what to do about them is up to the caller.
//!
//! A peer that does not answer, for example because no prober runs there, is probed again now and then, and nothing is said about its
//! path. Only known peers are answered, with less than they sent, and only so often. How much is sent is bounded, whatever the number
//! of peers. Answers count if they come from the peer's own address with the number of a probe that is open.
//!
//! # Examples
//!
//! ```no_run
//! use flannel_netlink::Namespace;
//! use flannel_probe::{End, Options, Prober, Target, Targets};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (prober, mut handle) = Prober::new(&Namespace::current()?, Options::default());
//! let end = End { local: "192.0.2.1".parse()?, overlay: None, needed: 1500 };
//! let peer = "10.244.7.0-24".parse()?;
//! let peer = Target { peer, address: "192.0.2.7".parse()?, overlay: None };
//! handle.set_targets(Targets::new(vec![end], vec![peer]));
//! tokio::spawn(prober.run());
//! while let Some(findings) = handle.changed().await {
//!     for ((peer, family), path) in &findings.paths {
//!         println!("{peer} {family:?}: {:?}", path.mtu);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod bucket;
mod findings;
mod options;
mod path;
mod prober;
mod schedule;
mod search;
mod sockets;
mod targets;
mod wire;

pub use findings::{Checksums, Findings, PathFinding, PathMtu, Traffic};
pub use options::Options;
pub use prober::{Prober, ProberHandle};
pub use targets::{End, Target, Targets};
pub use wire::{Datagram, HEADER, Kind};
