//! What the rules of a host, whoever wrote them, do to a packet that passes through it. Writes nothing.
//!
//! Looked at are the chains that packets between hosts pass: those of nf_tables for IPv4, IPv6 and both, which is where
//! iptables keeps its rules on most systems, and those of legacy iptables. The packet is the first of a flow, without a mark.
//! A rule with conditions beyond addresses, devices, marks and the state of the connection may fit or not; sets and maps are
//! not looked into.

mod kernel;
mod passage;
mod text;

use std::{fmt, path::PathBuf};

use flannel_netlink::Namespace;
use nix::libc;

use crate::{
    error::FirewallError,
    keeper::{NFPROTO_INET, legacy_tables},
    netfilter::Netfilter,
    rules::Family,
    tool::{Runs, Tool},
};
pub use passage::Passage;
use passage::{Table, obstacles};

/// A rule, or a policy, that keeps a packet from getting through as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Obstacle {
    /// What it does to the packet.
    pub effect: Effect,
    /// Whether it does that to every packet of the pair that no rule before it accepts; false if it has conditions of its own
    /// that nobody can tell from addresses and devices.
    pub certain: bool,
    /// Where it is: `chain FORWARD of table ip filter`.
    pub place: String,
    /// Which of the chain's rules it is: `rule 3`, or `its policy`.
    pub rule: String,
}

/// What a rule does to a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Effect {
    /// The packet is gone.
    Drops,
    /// The packet goes on with another source.
    Masquerades,
}

impl Obstacle {
    /// What does `effect` at `rule` of `place`.
    pub fn new(
        effect: Effect,
        certain: bool,
        place: impl Into<String>,
        rule: impl Into<String>,
    ) -> Self {
        Self { effect, certain, place: place.into(), rule: rule.into() }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let may = if self.certain { "" } else { "may " };
        let does = match (self.effect, self.certain) {
            (Effect::Drops, true) => "drops",
            (Effect::Drops, false) => "drop",
            (Effect::Masquerades, true) => "masquerades",
            (Effect::Masquerades, false) => "masquerade",
        };
        write!(f, "{} {may}{does} these packets by {}", self.place, self.rule)
    }
}

/// What of the rules in `namespace` is in the way of `passage`, in the order in which the packet meets it.
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
    passage: &Passage,
    tool_folders: &[PathBuf],
) -> Result<Vec<Obstacle>, FirewallError> {
    let mut tables = Vec::new();
    // A kernel without nf_tables does not know the question.
    if let Ok(mut netfilter) = Netfilter::open(namespace) {
        match kernel::tables(&mut netfilter, passage) {
            Ok(found) => tables.extend(found),
            Err(error) if error.unsupported() || error.errno == libc::EINVAL => {}
            Err(error) => return Err(FirewallError::kernel("list the rules")(error.into())),
        }
    }
    tables.extend(legacy(namespace, passage, tool_folders).await?);
    Ok(obstacles(&tables))
}

/// The tables of legacy iptables, if there are any.
async fn legacy(
    namespace: &Namespace,
    passage: &Passage,
    folders: &[PathBuf],
) -> Result<Vec<Table>, FirewallError> {
    let family = passage.family();
    if legacy_tables(namespace, family).is_none_or(|tables| tables.is_empty()) {
        return Ok(Vec::new());
    }
    let failed = FirewallError::kernel("list the rules of legacy iptables");
    for variant in ["-legacy", ""] {
        match Tool::find(namespace, folders, family, variant, &Runs::default()).await {
            Ok(Some(tool)) if !tool.notifies() => {
                return match tool.list().await {
                    Ok(listing) => Ok(text::tables(&listing, passage)),
                    Err(error) => Err(failed(error.into())),
                };
            }
            Ok(_) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    // Its rules count all the same, but nobody can read them.
    Ok(Vec::new())
}

/// The families of tables that packets of `family` pass.
fn protocols(family: Family) -> [u8; 2] {
    [family.protocol(), NFPROTO_INET]
}
