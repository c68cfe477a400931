//! What lets flows survive while rules are gone.
//!
//! The kernel stops tracking connections and translating addresses when the last rule that needs it goes. Packets of flows
//! that were masqueraded then pass with the wrong address until the rules are back, and whoever gets them resets the
//! connection. So a table of no effect keeps both going. It belongs to our socket: `nft flush ruleset` passes it by, nobody
//! else can alter it, and it goes when the socket does.

use flannel_netlink::KernelError;
use nix::libc;

use super::{
    Expression, HOOK_POSTROUTING, PRIORITY_SRCNAT,
    kernel::{
        NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWTABLE, NFT_TABLE_F_OWNER, NFTA_CHAIN_HOOK,
        NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
        NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME,
    },
};
use crate::{
    netfilter::{Netfilter, Step},
    options::Name,
    rules::Family,
    wire::Writer,
};

impl Netfilter {
    /// Keeps connections of the family tracked and translated for as long as this socket lives. Linux 5.12 and newer.
    pub(crate) fn guard(&mut self, family: Family, name: &Name) -> Result<(), KernelError> {
        // Another node of this name may be there, for a moment, and has its own.
        let table = format!("{name}-guard-{}", self.port());
        let step = |kind, flags: libc::c_int, body: Box<dyn Fn(&mut Writer)>| Step {
            kind,
            flags: flags as u16,
            family: family.protocol(),
            body,
        };
        let (of_chain, of_rule) = (table.clone(), table.clone());
        self.transact(&[
            step(
                NFT_MSG_NEWTABLE,
                libc::NLM_F_CREATE | libc::NLM_F_EXCL,
                Box::new(move |out| {
                    out.text(NFTA_TABLE_NAME, &table);
                    out.number(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
                }),
            ),
            step(
                NFT_MSG_NEWCHAIN,
                libc::NLM_F_CREATE,
                Box::new(move |out| {
                    out.text(NFTA_CHAIN_TABLE, &of_chain);
                    out.text(NFTA_CHAIN_NAME, CHAIN);
                    out.nest(NFTA_CHAIN_HOOK, |out| {
                        out.number(NFTA_HOOK_HOOKNUM, HOOK_POSTROUTING);
                        out.number(NFTA_HOOK_PRIORITY, PRIORITY_SRCNAT.cast_unsigned());
                    });
                    // Which makes the kernel translate.
                    out.text(NFTA_CHAIN_TYPE, "nat");
                }),
            ),
            step(
                NFT_MSG_NEWRULE,
                libc::NLM_F_CREATE | libc::NLM_F_APPEND,
                Box::new(move |out| {
                    out.text(NFTA_RULE_TABLE, &of_rule);
                    out.text(NFTA_RULE_CHAIN, CHAIN);
                    // Which makes the kernel track.
                    out.nest(NFTA_RULE_EXPRESSIONS, |out| Expression::LoadState.write(out));
                }),
            ),
        ])
    }
}

const CHAIN: &str = "keep-tracking";
