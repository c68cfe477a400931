//! What the rules of a host, whoever wrote them, do to packets. Writes nothing.
//!
//! Looked at are the chains of nf_tables for IPv4, IPv6 and both, which is where iptables keeps its rules on most systems, and
//! those of legacy iptables. The packets are the first of a flow, without a mark. A condition that cannot be told from what is
//! known of them may hold or not; sets are looked into.

mod bits;
mod blockers;
mod nft_rules;
mod nft_sets;
mod packet;
mod save_rules;
mod ternary;
mod walk;
mod xt_matches;

use std::{fmt, path::PathBuf};

pub(crate) use blockers::find_blockers;
use flannel_netlink::Namespace;
use nix::libc;
pub use packet::{Direction, Flow, PacketPath};
use walk::{Table, findings};

use crate::{
    error::FirewallError,
    iptables::{Iptables, Listing, RunCounter},
    leftovers::{find_legacy, legacy_tables},
    nftables::Client,
    options::FirewallOptions,
    rules::Family,
    warnings::RuleSources,
};

/// A rule, or a policy, that keeps packets from getting through as they are.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub struct Finding {
    /// What it does to them.
    pub effect: Effect,
    /// Whether it does that to all of them; false if it, or a rule before it that accepts, has conditions that cannot be told from
    /// what is known of the packets.
    pub certain: bool,
    /// Where it is: `chain FORWARD of table ip filter`.
    pub place: String,
    /// Which of the chain's rules it is: `rule 3`, or `its policy`.
    pub rule: String,
}

/// What a rule does to a packet.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Effect {
    /// The packet is gone.
    Drops,
    /// The packet goes on with another source.
    Masquerades,
}

impl Finding {
    /// What does `effect` at `rule` of `place`.
    pub fn new(
        effect: Effect,
        certain: bool,
        place: impl Into<String>,
        rule: impl Into<String>,
    ) -> Self {
        Self { effect, certain, place: place.into(), rule: rule.into() }
    }

    /// The sentence about it with the packets in words.
    pub(crate) fn about(&self, packets: &str) -> String {
        let may = if self.certain { "" } else { "may " };
        let does = match (self.effect, self.certain) {
            (Effect::Drops, true) => "drops",
            (Effect::Drops, false) => "drop",
            (Effect::Masquerades, true) => "masquerades",
            (Effect::Masquerades, false) => "masquerade",
        };
        format!("{} {may}{does} {packets} by {}", self.place, self.rule)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.about("these packets"))
    }
}

/// What of the rules in `namespace` is in the way of packets on `path`, in the order in which they meet it.
///
/// `tool_folders` is where legacy iptables is looked for, if the kernel has rules of it; empty for the usual places.
///
/// # Errors
///
/// [`FirewallError::Kernel`] if the rules cannot be read, which takes `CAP_NET_ADMIN`.
///
/// # Cancel safety
///
/// Dropping the future leaves nothing.
pub async fn inspect(
    namespace: &Namespace,
    path: &PacketPath,
    tool_folders: &[PathBuf],
) -> Result<Vec<Finding>, FirewallError> {
    let options =
        FirewallOptions { tool_folders: tool_folders.to_vec(), ..FirewallOptions::default() };
    let mut client = Client::open(namespace).ok();
    let mut sources = RuleSources {
        namespace,
        client: client.as_mut(),
        iptables: &Iptables::default(),
        options: &options,
    };
    let found = inspect_all(&mut sources, std::slice::from_ref(path), true).await?;
    Ok(found.into_iter().flatten().collect())
}

/// As [`inspect`] for several paths of one family, for whose sake the rules are read once; those that translate addresses only if
/// they are asked for.
pub(crate) async fn inspect_all(
    sources: &mut RuleSources<'_>,
    paths: &[PacketPath],
    translations: bool,
) -> Result<Vec<Vec<Finding>>, FirewallError> {
    let Some(family) = paths.first().map(PacketPath::family) else { return Ok(Vec::new()) };
    let mut tables: Vec<Vec<Table>> = vec![Vec::new(); paths.len()];
    if let Some(client) = sources.client.as_deref_mut() {
        match nft_rules::tables(client, paths, translations).await {
            Ok(found) => tables = found,
            // A kernel without nf_tables does not know the question.
            Err(error) if error.unsupported() || error.errno == libc::EINVAL => {}
            Err(error) => return Err(FirewallError::kernel("list the rules")(error.into())),
        }
    }
    let listed;
    let legacy = match sources.iptables.legacy_listing(family) {
        Some(listing) => Some(listing),
        None => {
            listed = list_legacy(sources, family).await?;
            listed.as_ref()
        }
    };
    for (path, tables) in paths.iter().zip(&mut tables) {
        tables.extend(legacy.map(|listing| save_rules::tables(listing, path)).unwrap_or_default());
    }
    Ok(paths.iter().zip(tables).map(|(path, tables)| findings(path, &tables)).collect())
}

/// What legacy iptables has, if it has tables and is installed.
async fn list_legacy(
    sources: &RuleSources<'_>,
    family: Family,
) -> Result<Option<Listing>, FirewallError> {
    let RuleSources { namespace, options, .. } = sources;
    if legacy_tables(namespace, family).is_none_or(|tables| tables.is_empty()) {
        return Ok(None);
    }
    match find_legacy(namespace, &options.tool_folders, family, &RunCounter::default()).await {
        Some(program) => program.list().await.map(Some).map_err(|error| {
            FirewallError::kernel("list the rules of legacy iptables")(error.into())
        }),
        None => Ok(None),
    }
}
