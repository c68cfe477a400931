use flannel_firewall::nftables::{Batch, Client, Family};
use flannel_netlink::KernelError;

/// Adds to `batch` what removes a chain of table `nat` that was made with iptables, and the rules that lead to it. That it is not
/// there is fine: then this is one question. Rules of legacy iptables are not in nf_tables, and not found.
pub(crate) async fn remove_chain(
    client: &mut Client,
    batch: &mut Batch,
    family: Family,
    chain: &str,
) -> Result<(), KernelError> {
    if !client.has_chain(family, TABLE, chain).await? {
        return Ok(());
    }
    for rule in client.rules(family, TABLE).await? {
        if rule.target() == Some(chain) {
            batch.delete_rules(family, TABLE, &rule.chain, Some(rule.handle));
        }
    }
    batch.delete_rules(family, TABLE, chain, None);
    batch.delete_chain(family, TABLE, chain);
    Ok(())
}

const TABLE: &str = "nat";
