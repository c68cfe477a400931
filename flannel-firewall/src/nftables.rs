//! Rules as nftables keeps them: one table per family, which is ours as a whole.
//!
//! Tables and chains have flannel's names. The rules are those of iptables, which flannel's own nftables rules are not: there
//! `saddr != own daddr network return` keeps traffic from outside to pods of peers from being masqueraded, and a mark with
//! more than kube-proxy's bit is not recognised. A flanneld that takes over writes its own.

mod expression;
mod found;
mod guard;
mod kernel;
mod text;

pub(crate) use expression::{Expression, NF_ACCEPT, NF_DROP, NFT_GOTO, NFT_JUMP, NFT_RETURN};
pub(crate) use found::{FoundChain, FoundTable, Op, diff};
pub(crate) use kernel::{PlacedChain, PlacedRule};
pub(crate) use text::rule_text;

use crate::{
    options::Name,
    rules::{Family, Rule, Rules},
};

/// What we want as table of one family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WantedTable {
    pub(crate) family: Family,
    pub(crate) name: String,
    pub(crate) chains: Vec<WantedChain>,
}

/// What we want as a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WantedChain {
    pub(crate) name: &'static str,
    pub(crate) comment: &'static str,
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Rule>,
}

/// Where in the kernel a chain is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: String,
    /// `NF_INET_*` of linux/netfilter.h.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

impl WantedTable {
    /// The table for `rules`. Without chains if there is nothing to keep: then the table is not wanted either.
    pub(crate) fn new(family: Family, rules: Rules, name: &Name) -> Self {
        let forward = WantedChain {
            name: "forward",
            comment: "chain to accept flannel traffic",
            hook: Hook { kind: "filter".into(), number: HOOK_FORWARD, priority: 0 },
            rules: rules.forward,
        };
        let postrouting = WantedChain {
            name: "postrtg",
            comment: "chain to manage traffic masquerading by flannel",
            hook: Hook { kind: "nat".into(), number: HOOK_POSTROUTING, priority: PRIORITY_SRCNAT },
            rules: rules.masquerade,
        };
        let mut chains = vec![forward, postrouting];
        chains.retain(|chain| !chain.rules.is_empty());
        Self { family, name: name.table(family.table()), chains }
    }

    /// flannel's.
    pub(crate) fn comment(&self) -> String {
        format!("rules for {}", self.name)
    }
}

impl Family {
    /// How flannel's tables of this family end.
    fn table(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// What nft calls it.
    pub(crate) fn keyword(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }

    /// `NFPROTO_*` of linux/netfilter.h.
    pub(crate) fn protocol(self) -> u8 {
        match self {
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }
}

// linux/netfilter.h
pub(crate) const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;
/// linux/netfilter_ipv4.h, and the same for IPv6.
const PRIORITY_SRCNAT: i32 = 100;

#[cfg(test)]
mod tests;
