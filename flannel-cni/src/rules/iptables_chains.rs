use flannel_firewall::nftables::{Batch, Client, Family};

use crate::{kernel::refused, protocol::Error};

/// Removes a chain of table `nat` that another plugin made with iptables, and the rules that lead to it. That it is not there is
/// fine: then this is one question. Rules of legacy iptables are not in nf_tables, and not found.
pub(crate) async fn remove_chain(
    client: &mut Client,
    family: Family,
    chain: &str,
) -> Result<(), Error> {
    let what = || format!("cannot remove chain {chain} of table {family} nat");
    let there = client.has_chain(family, TABLE, chain).await;
    if !there.map_err(|error| refused(what(), &error))? {
        return Ok(());
    }
    let rules = client.rules(family, TABLE).await.map_err(|error| refused(what(), &error))?;
    let mut batch = Batch::default();
    for rule in rules.iter().filter(|rule| rule.target() == Some(chain)) {
        batch.delete_rules(family, TABLE, &rule.chain, Some(rule.handle));
    }
    batch.delete_rules(family, TABLE, chain, None);
    batch.delete_chain(family, TABLE, chain);
    client.apply(&batch).await.map_err(|error| refused(what(), &error))
}

const TABLE: &str = "nat";
