//! Masquerading and forwarding rules of a node, kept in nftables or iptables.
//!
//! A [`Firewall`] is level-triggered as everything else: it is told what the node holds, and makes the rules match. Start,
//! another lease, another mode, `iptables -F`, `nft flush ruleset` and a rule altered by somebody take the same path.
//! [`Firewalled`] puts one around any backend, so that the node's one loop drives it.
//!
//! # What the rules do
//!
//! Packets that leave the network get the address of this node, if that is [asked for](Masquerade), and so do packets from
//! outside to pods of peers. Packets between pods keep their addresses, and so do packets from outside to pods of this node.
//! What kube-proxy has marked is left to it. Forwarded packets from and to the network are accepted; if they [have to
//! go](FirewallOptions::tunnels) by a tunnel between nodes, those that do not are dropped.
//!
//! # Who keeps them
//!
//! * **iptables**: the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD`, in flannel's own words, so that each finds the other's rules
//!   when they take turns on a machine. The programs are run when there is something to read or write, and not otherwise.
//! * **nftables**: the tables `flannel-ipv4` and `flannel-ipv6`, written over netlink in one transaction each, without any
//!   program. The rules mean the same as those of iptables. Flannel's own do not: there, traffic from outside to pods of peers
//!   is not masqueraded, and a mark counts only if it is kube-proxy's and no other bit is set.
//!
//! Unless somebody decides, it is iptables where that is installed and works. If another network of the namespace has chains and
//! tables of these names, ours have a hash of our network in theirs.
//!
//! An accept in a table of nftables does not overrule a chain of another table that drops. With the feature `inspect` the report
//! names such chains, and whatever else drops the network's packets.
//!
//! # How soon they are repaired
//!
//! The kernel tells of changes in nf_tables, which is where iptables keeps its rules on most systems: repaired at once. Rules of
//! legacy iptables are looked at every 5 s.
//!
//! # Features
//!
//! * `inspect`: the function `inspect`, which says what the rules of a host do to given packets, and the report's notes about
//!   rules of others that drop the network's packets.
#![forbid(unsafe_code)]

mod changes;
mod error;
mod firewall;
mod firewalled;
#[cfg(feature = "inspect")]
mod inspect;
pub mod iptables;
mod leftovers;
mod names;
pub mod nftables;
mod options;
mod outcome;
mod report;
mod router_advertisements;
mod rules;
mod sysctl;
mod tables;
mod warnings;

pub use error::FirewallError;
pub use firewall::Firewall;
pub use firewalled::Firewalled;
#[cfg(feature = "inspect")]
pub use inspect::{Direction, Effect, Finding, Flow, PacketPath, inspect};
pub use iptables::needs_net_raw;
pub use names::{InvalidName, Name};
pub use options::{FirewallOptions, Masquerade, ModeChoice};
pub use report::{FIREWALL, FirewallFault, FirewallMode, FirewallReport};
pub use rules::{Action, Family, Match, NotBy, Rule, Rules, Scope, Side};
