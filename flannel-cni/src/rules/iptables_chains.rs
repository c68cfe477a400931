//! Chains that containers have in table `nat` of iptables. Those of iptables-nft are removed over netlink, without any program.

use std::{
    collections::{BTreeSet, HashSet},
    slice,
};

use flannel_firewall::{
    Family,
    iptables::{Program, Table, Words},
    nftables::{Batch, Client, Family as TableFamily},
};
use flannel_netlink::{KernelError, Namespace};

use super::{iptables, update_existing};
use crate::protocol::Error;

/// Chains to be removed, with the rules that lead to them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Removal {
    /// Where the rules are that lead to them.
    entry_chain: &'static str,
    /// This one, whether a rule leads to it or not,
    name: Option<String>,
    /// and those that rules lead to whose comment begins so,
    comment: Option<String>,
    /// but for these.
    valid: HashSet<String>,
}

impl Removal {
    /// One chain. It may be gone already.
    pub(crate) fn named(entry_chain: &'static str, name: &str) -> Self {
        Self { entry_chain, name: Some(name.to_owned()), ..Self::default() }
    }

    /// The chains of all containers whose comments begin so, but for the `valid` ones.
    pub(crate) fn stale(
        entry_chain: &'static str,
        comment: String,
        valid: HashSet<String>,
    ) -> Self {
        Self { entry_chain, comment: Some(comment), valid, ..Self::default() }
    }

    /// Whether the chain goes that a rule with this comment leads to.
    fn takes(&self, chain: &str, comment: &str) -> bool {
        let is_stale = || {
            let of_containers = self.comment.as_ref().is_some_and(|it| comment.starts_with(it));
            of_containers && chain.starts_with("CNI-") && !self.valid.contains(chain)
        };
        self.name.as_deref() == Some(chain) || is_stale()
    }

    /// Adds to `batch` what removes them from iptables-nft.
    pub(crate) async fn plan(
        &self,
        client: &mut Client,
        batch: &mut Batch,
        family: TableFamily,
    ) -> Result<(), KernelError> {
        let mut chains = BTreeSet::new();
        if let Some(name) = &self.name {
            if !client.has_chain(family, TABLE, name).await? {
                return Ok(());
            }
            chains.insert(name.clone());
        }
        for rule in client.chain_rules(family, TABLE, self.entry_chain).await? {
            let Some(target) = rule.target() else { continue };
            if self.takes(target, rule.iptables_comment().unwrap_or_default()) {
                batch.delete_rules(family, TABLE, self.entry_chain, Some(rule.handle));
                chains.insert(target.to_owned());
            }
        }
        for chain in chains {
            batch.delete_rules(family, TABLE, &chain, None);
            batch.delete_chain(family, TABLE, &chain);
        }
        Ok(())
    }

    /// The lines for `iptables-restore` that remove them from a table.
    fn lines(&self, table: &Table) -> Vec<String> {
        let mut chains: BTreeSet<String> =
            self.name.iter().filter(|name| table.chains.contains_key(*name)).cloned().collect();
        let mut lines = Vec::new();
        let entries = table.chains.get(self.entry_chain);
        for text in entries.iter().flat_map(|chain| &chain.rules) {
            let words: Vec<String> = Words(text).collect();
            let option = |name: &str| {
                words.windows(2).find(|pair| pair[0] == name).map_or("", |pair| &pair[1])
            };
            if self.takes(option("-j"), option("--comment")) {
                lines.push(format!("-D {} {text}", self.entry_chain));
                chains.insert(option("-j").to_owned());
            }
        }
        lines
            .extend(chains.iter().flat_map(|chain| [format!("-F {chain}"), format!("-X {chain}")]));
        lines
    }
}

/// Removes chains of one family from whichever iptables has them.
pub(crate) async fn remove_chains(
    host: &Namespace,
    family: Family,
    removal: &Removal,
) -> Result<(), Error> {
    let table = if family.is_ipv4() { TableFamily::IPV4 } else { TableFamily::IPV6 };
    let removed = update_existing(host, "cannot remove chains of iptables", async |client| {
        let mut batch = Batch::default();
        removal.plan(client, &mut batch, table).await.map(|()| batch)
    })
    .await;
    let of_legacy = remove_legacy_of(host, family, slice::from_ref(removal)).await;
    Error::of_all([removed, of_legacy])
}

/// Adds to `batch` what removes chains of both families from iptables-nft.
pub(crate) async fn plan_removals(
    client: &mut Client,
    batch: &mut Batch,
    removals: &[Removal],
) -> Result<(), KernelError> {
    for family in [TableFamily::IPV4, TableFamily::IPV6] {
        for removal in removals {
            removal.plan(client, batch, family).await?;
        }
    }
    Ok(())
}

/// Removes chains of both families from legacy iptables, if that has any.
pub(crate) async fn remove_legacy_chains(
    host: &Namespace,
    removals: &[Removal],
) -> Result<(), Error> {
    let [ipv4, ipv6] = Family::ALL;
    Error::of_all([
        remove_legacy_of(host, ipv4, removals).await,
        remove_legacy_of(host, ipv6, removals).await,
    ])
}

async fn remove_legacy_of(
    host: &Namespace,
    family: Family,
    removals: &[Removal],
) -> Result<(), Error> {
    let Some(program) = Program::legacy(host, family, TABLE).await else { return Ok(()) };
    let listing = program.list().await.map_err(|error| iptables::refused(&error))?;
    let Some(table) = listing.tables.get(TABLE) else { return Ok(()) };
    let lines: Vec<String> = removals.iter().flat_map(|removal| removal.lines(table)).collect();
    if lines.is_empty() {
        return Ok(());
    }
    iptables::run(&program, &lines).await.map_err(|error| iptables::refused(&error))
}

const TABLE: &str = "nat";

#[cfg(test)]
mod tests {
    use flannel_firewall::iptables::Listing;

    use super::*;

    #[test]
    fn the_chains_of_containers_that_are_gone_are_removed_with_what_leads_to_them() {
        let text = "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-DN-1 - [0:0]\n:CNI-DN-2 - [0:0]\n:CNI-DN-3 - [0:0]\n\
            -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"n\\\" id: \\\"1\\\"\" -j CNI-DN-1\n\
            -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"n\\\" id: \\\"2\\\"\" -j CNI-DN-2\n\
            -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"nn\\\" id: \\\"3\\\"\" -j CNI-DN-3\n\
            -A CNI-HOSTPORT-DNAT -m comment --comment \"dnat name: \\\"n\\\" id: \\\"4\\\"\" -j ACCEPT\nCOMMIT\n";
        let listing = Listing::parse(text);
        let table = &listing.tables["nat"];
        let valid = HashSet::from(["CNI-DN-2".to_owned()]);
        let stale = Removal::stale("CNI-HOSTPORT-DNAT", "dnat name: \"n\" id: ".to_owned(), valid);
        let one = [
            "-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"n\\\" id: \\\"1\\\"\" -j CNI-DN-1",
            "-F CNI-DN-1",
            "-X CNI-DN-1",
        ];
        assert_eq!(stale.lines(table), one);
        assert_eq!(Removal::named("CNI-HOSTPORT-DNAT", "CNI-DN-1").lines(table), one);
        let without_entry = Removal::named("POSTROUTING", "CNI-DN-3").lines(table);
        assert_eq!(without_entry, ["-F CNI-DN-3", "-X CNI-DN-3"]);
        assert_eq!(Removal::named("POSTROUTING", "CNI-DN-9").lines(table), [""; 0]);
    }
}
