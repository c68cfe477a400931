//! What lets flows survive while rules are gone.
//!
//! The kernel stops tracking connections and translating addresses when the last rule that needs it goes. Packets of flows
//! that were masqueraded then pass with the wrong address until the rules are back, and whoever gets them resets the
//! connection. So a table of no effect keeps both going. It belongs to our socket: `nft flush ruleset` passes it by, nobody
//! else can alter it, and it goes when the socket does.
//!
//! Nobody may add to it either, so an administrator who saves all rules and loads them again would be refused. Therefore its name
//! ends with a blank, which the language of nft has no words for: what `nft list ruleset` prints is about another table when
//! it is read again. Newer versions of nft print that the table is owned, so that one vanishes with the nft that loads it; what
//! older ones leave is removed by [`left_by_reload`].

use flannel_netlink::KernelError;

use crate::{
    names::Name,
    nftables::{
        Batch, ChainInfo, Client, Expression, Family as TableFamily, Hook, uapi::NFT_TABLE_F_OWNER,
    },
    rules::Family,
};

/// Keeps connections of the family tracked and translated for as long as the client lives. Linux 5.12 and newer.
pub(crate) async fn keep_tracking(
    client: &mut Client,
    family: Family,
    name: &Name,
) -> Result<(), KernelError> {
    // Another node of this name may be there, for a moment, and has its own.
    let table = format!("{}{} ", prefix(name), client.port());
    let family = TableFamily::from(family);
    let mut batch = Batch::default();
    batch.add_table(family, &table, NFT_TABLE_F_OWNER, None);
    // The kind of chain makes the kernel translate, and the rule makes it track.
    let hook =
        Hook { kind: "nat".into(), number: Hook::POSTROUTING, priority: Hook::PRIORITY_SRCNAT };
    batch.add_chain(family, &table, CHAIN, Some(&hook), None);
    let state = Expression::Connection { register: Expression::REGISTER, key: NFT_CT_STATE };
    batch.add_rule(family, &table, CHAIN, &[state]);
    client.apply(&batch).await
}

/// Removes what a reload of saved rules made of such a table.
pub(super) async fn left_by_reload(
    client: &mut Client,
    name: &Name,
    chains: &[ChainInfo],
) -> Result<(), KernelError> {
    let prefix = prefix(name);
    let left = chains.iter().filter(|chain| {
        let port = chain.table.strip_prefix(&prefix);
        port.is_some_and(|port| port.parse::<u32>().is_ok()) && chain.name == CHAIN
    });
    for ChainInfo { family, table, .. } in left {
        let mut batch = Batch::default();
        batch.delete_table(*family, table);
        match client.apply(&batch).await {
            Err(error) if !error.not_found() && !error.not_permitted() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn prefix(name: &Name) -> String {
    format!("{name}-guard-")
}

const CHAIN: &str = "keep-tracking";

// linux/netfilter/nf_tables.h
const NFT_CT_STATE: u32 = 0;
