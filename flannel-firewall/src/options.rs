//! What to keep, and where.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use ipnetwork::IpNetwork;

/// Which rules a [`Firewall`](crate::Firewall) keeps, and by what means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FirewallOptions {
    /// What chains and tables are called. Two nodes in one network namespace need two names.
    pub name: Name,
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
            mode: ModeChoice::Auto,
            masquerade: Masquerade::Off,
            keep_source: Vec::new(),
            forward: true,
            forwarding: true,
            check_every: Duration::from_secs(5),
            tool_folders: Vec::new(),
        }
    }
}

/// Who is to keep the rules.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ModeChoice {
    /// iptables where it is installed, for there rules that accept count against the `DROP` policy that Docker and others set;
    /// nftables where it is not.
    #[default]
    Auto,
    /// iptables and ip6tables, be they legacy or a face of nftables.
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

/// What chains and tables are called: `FLANNEL-POSTRTG` and `flannel-ipv4` unless set, as flannel's are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name(String);

impl Name {
    /// The chain of iptables for this purpose.
    pub(crate) fn chain(&self, purpose: &str) -> String {
        format!("{}-{purpose}", self.0.to_uppercase())
    }

    /// The table of nftables for this family.
    pub(crate) fn table(&self, family: &str) -> String {
        format!("{}-{family}", self.0)
    }
}

impl Default for Name {
    fn default() -> Self {
        Self("flannel".into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        if starts && text.len() <= LONGEST_NAME && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName { name: text.chars().take(40).collect() })
        }
    }
}

/// Why a text is no [`Name`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{name:?} cannot name chains and tables, expected 1 to 16 of a-z, 0-9 and -, a letter first"
)]
pub struct InvalidName {
    name: String,
}

/// iptables takes chains of up to 28 bytes, and the longest purpose has 8 with its dash.
const LONGEST_NAME: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_both_can_have() {
        assert_eq!(Name::default(), "flannel".parse().unwrap());
        let name: Name = "blue-2".parse().unwrap();
        assert_eq!(
            (name.chain("FWD"), name.table("ipv6")),
            ("BLUE-2-FWD".into(), "blue-2-ipv6".into())
        );
        for bad in ["", "2x", "-x", "Flannel", "a b", "a\n", "ä", "abcdefghijklmnopq"] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("1 to 16 of a-z"), "{error}");
        }
    }
}
