//! The kernel's nf_tables over netlink: tables, chains, rules and sets as values, read and written without any program.
//!
//! A [`Client`] lists what is there and applies a [`Batch`], which the kernel does as a whole or not at all. [`Expression`] is what
//! rules are made of, byte for byte as `nft` compiles them; what it does not know by its parts it knows by its name.
//!
//! # Examples
//!
//! A table with one chain that counts nothing and accepts what comes from a block:
//!
//! ```no_run
//! use flannel_firewall::nftables::{Batch, Client, Expression, Family, Hook};
//! use flannel_netlink::Namespace;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::open(&Namespace::current()?)?;
//! let hook = Hook { kind: "filter".into(), number: Hook::FORWARD, priority: 0 };
//! let mut batch = Batch::default();
//! batch.add_table(Family::IPV4, "example", 0, None);
//! batch.add_chain(Family::IPV4, "example", "forward", Some(&hook), None);
//! let mut rule = Expression::compare_address(12, "10.244.0.0/16".parse()?, false);
//! rule.push(Expression::ACCEPT);
//! batch.add_rule(Family::IPV4, "example", "forward", &rule);
//! client.apply(&batch).await?;
//! # Ok(())
//! # }
//! ```

mod batch;
mod client;
mod expression;
pub(crate) mod uapi;
mod verdict;

pub use batch::Batch;
pub use client::{ChainInfo, Client, RuleInfo, SetElement, TableInfo};
pub use expression::{Comparison, Expression};
pub use verdict::Verdict;

use std::fmt;

/// The family of a table, `NFPROTO_*` of linux/netfilter.h.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Family(pub u8);

impl Family {
    /// What bridges carry.
    pub const BRIDGE: Self = Self(7);
    /// Both IPv4 and IPv6.
    pub const INET: Self = Self(1);
    /// IPv4.
    pub const IPV4: Self = Self(2);
    /// IPv6.
    pub const IPV6: Self = Self(10);
}

impl fmt::Display for Family {
    /// What `nft` calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("inet"),
            2 => f.write_str("ip"),
            3 => f.write_str("arp"),
            5 => f.write_str("netdev"),
            7 => f.write_str("bridge"),
            10 => f.write_str("ip6"),
            other => write!(f, "family {other}"),
        }
    }
}

/// Where in the kernel a base chain is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// `NF_INET_*` of linux/netfilter.h.
    pub number: u32,
    /// Chains of one hook are passed from the lowest on.
    pub priority: i32,
}

impl Hook {
    /// Packets that came in, before they are routed.
    pub const PREROUTING: u32 = 0;
    /// Packets to this host.
    pub const INPUT: u32 = 1;
    /// Packets that pass through.
    pub const FORWARD: u32 = 2;
    /// Packets of this host.
    pub const OUTPUT: u32 = 3;
    /// Packets that are about to leave.
    pub const POSTROUTING: u32 = 4;
    /// Where destinations are translated, linux/netfilter_ipv4.h, and the same for IPv6.
    pub const PRIORITY_DSTNAT: i32 = -100;
    /// Where sources are translated, linux/netfilter_ipv4.h, and the same for IPv6.
    pub const PRIORITY_SRCNAT: i32 = 100;
}
