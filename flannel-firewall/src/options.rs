//! What to keep, and where.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ipnetwork::IpNetwork;

use crate::{names::Name, rules::Family};

/// Which rules a [`Firewall`](crate::Firewall) keeps, and by what means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FirewallOptions {
    /// What chains and tables are called. Nodes of several networks in one namespace may have the same: all but one of them then
    /// use this with a hash of their network. Two nodes of one network need two names.
    pub name: Name,
    /// Networks that this node was in before: rules of theirs are its own as well, and go.
    pub networks: Vec<IpNetwork>,
    /// Who keeps the rules.
    pub mode: ModeChoice,
    /// Whether traffic that leaves the network gets the address of this node, and which ports it gets.
    pub masquerade: Masquerade,
    /// Destinations outside of the network, such as the addresses of the nodes, to which packets from the network keep their source.
    /// Answers come back only if whoever is there has a route to the network. Flannel has no such rules.
    pub keep_source: Vec<IpNetwork>,
    /// Whether forwarded traffic from and to the network is accepted, whatever the rules behind ours say. Rules in a table of
    /// nftables cannot overrule others: see [`FirewallMode`](crate::FirewallMode) in the report.
    pub forward: bool,
    /// The device of each family by which alone packets between pods of different nodes may go: those that would enter or leave by
    /// another one are dropped. A name that ends in `+` stands for all that begin so, as in iptables. Families that are not named have no
    /// such rules, nor has flannel.
    pub tunnels: BTreeMap<Family, String>,
    /// Whether the kernel is told to forward packets, where it does not yet.
    pub forwarding: bool,
    /// How often rules are looked at that change without notice, which are those of legacy iptables only. 5 s, as in flannel's
    /// `--iptables-resync`.
    pub check_every: Duration,
    /// Where iptables is looked for; if empty, in `PATH` and then in the usual folders.
    pub tool_folders: Vec<PathBuf>,
}

impl Default for FirewallOptions {
    /// flannel's defaults: forward rules, and no masquerading.
    fn default() -> Self {
        Self {
            name: Name::default(),
            networks: Vec::new(),
            mode: ModeChoice::Auto,
            masquerade: Masquerade::Off,
            keep_source: Vec::new(),
            forward: true,
            tunnels: BTreeMap::new(),
            forwarding: true,
            check_every: Duration::from_secs(5),
            tool_folders: Vec::new(),
        }
    }
}

/// Who is to keep the rules.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ModeChoice {
    /// iptables where it is installed and works, for there rules that accept count against the `DROP` policy that Docker and others set;
    /// nftables where it does not, as for tables with rules that only `nft` can read.
    #[default]
    Auto,
    /// iptables and ip6tables, be they legacy or a face of nftables. Where they are not installed, as in a container image without
    /// them, tables of nftables, and the report says so.
    Iptables,
    /// Tables of nftables. Needs no program.
    Nftables,
}

impl ModeChoice {
    /// What a network's `EnableNFTables` asks for.
    pub fn of(config: &flannel_core::NetworkConfig) -> Self {
        match config.enable_nftables() {
            None => Self::Auto,
            Some(false) => Self::Iptables,
            Some(true) => Self::Nftables,
        }
    }

    /// Why the mode is not there, with what to do.
    pub(crate) const fn remedy(self) -> &'static str {
        match self {
            Self::Auto => {
                "iptables is not installed and the kernel has no nf_tables; install iptables or load nf_tables"
            }
            Self::Iptables => {
                "iptables, iptables-save and iptables-restore are not installed; install them, or remove EnableNFTables from the configuration"
            }
            Self::Nftables => {
                "the kernel has no nf_tables, or does not let us use it; load nf_tables, or set EnableNFTables to false"
            }
        }
    }
}

/// What happens to the source of packets that leave the network.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Masquerade {
    /// Nothing.
    #[default]
    Off,
    /// They get this node's address, and keep their port if it is free.
    KeepPorts,
    /// They get this node's address and a random port, so that two flows that start at the same time do not collide; where
    /// iptables is older than 1.6.2, as for `KeepPorts`.
    RandomPorts,
}
