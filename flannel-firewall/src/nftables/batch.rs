//! What is to be written, as one transaction.

use flannel_netlink::{
    Request, netfilter_header, push_attribute, push_nested, push_text, push_u32_be, shortened,
};
use nix::libc;

use super::{
    Expression, Family, Hook,
    uapi::{
        NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE,
        NFT_MSG_NEWTABLE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE,
        NFTA_CHAIN_TYPE, NFTA_CHAIN_USERDATA, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
        NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE,
        NFTA_RULE_USERDATA, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, NFTA_TABLE_USERDATA, message_type,
    },
};

/// Changes that the kernel makes together or not at all, in this order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Batch {
    requests: Vec<Request>,
}

impl Batch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// Makes a table, unless it is there. `flags` are `NFT_TABLE_F_*`.
    pub fn add_table(&mut self, family: Family, table: &str, flags: u32, comment: Option<&str>) {
        self.push(NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, family, |out| {
            push_text(out, NFTA_TABLE_NAME, table);
            push_u32_be(out, NFTA_TABLE_FLAGS, flags);
            push_data(out, NFTA_TABLE_USERDATA, &comment_data(comment));
        });
    }

    /// Removes a table with all that it has. The kernel refuses if it is not there.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        self.push(NFT_MSG_DELTABLE, 0, family, |out| push_text(out, NFTA_TABLE_NAME, table));
    }

    /// Makes a chain, unless it is there. With a hook it is a base chain, with the policy to accept.
    pub fn add_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        hook: Option<&Hook>,
        comment: Option<&str>,
    ) {
        self.push(NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, family, |out| {
            push_text(out, NFTA_CHAIN_TABLE, table);
            push_text(out, NFTA_CHAIN_NAME, chain);
            if let Some(hook) = hook {
                push_nested(out, NFTA_CHAIN_HOOK, |out| {
                    push_u32_be(out, NFTA_HOOK_HOOKNUM, hook.number);
                    push_u32_be(out, NFTA_HOOK_PRIORITY, hook.priority.cast_unsigned());
                });
                push_u32_be(out, NFTA_CHAIN_POLICY, NF_ACCEPT);
                push_text(out, NFTA_CHAIN_TYPE, &hook.kind);
            }
            push_data(out, NFTA_CHAIN_USERDATA, &comment_data(comment));
        });
    }

    /// Removes a chain without rules.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.push(NFT_MSG_DELCHAIN, 0, family, |out| {
            push_text(out, NFTA_CHAIN_TABLE, table);
            push_text(out, NFTA_CHAIN_NAME, chain);
        });
    }

    /// Appends a rule.
    pub fn add_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        expressions: &[Expression],
    ) {
        self.add_commented_rule(family, table, chain, expressions, None);
    }

    /// Appends a rule with a comment, of which up to 254 bytes are kept.
    pub fn add_commented_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        expressions: &[Expression],
        comment: Option<&str>,
    ) {
        self.push_rule(family, table, chain, expressions, &comment_data(comment));
    }

    /// As [`add_commented_rule`](Self::add_commented_rule), with a text that nft neither shows nor minds. If there is no room for both
    /// in the kernel, the comment is kept.
    pub fn add_tagged_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        expressions: &[Expression],
        comment: &str,
        tag: &str,
    ) {
        let mut data = comment_data(Some(comment));
        let tag = [&[USERDATA_TAG, tag.len() as u8][..], tag.as_bytes()].concat();
        if data.len() + tag.len() <= MOST_USERDATA_BYTES {
            data.extend(tag);
        }
        self.push_rule(family, table, chain, expressions, &data);
    }

    fn push_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        expressions: &[Expression],
        data: &[u8],
    ) {
        self.push(NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, family, |out| {
            push_text(out, NFTA_RULE_TABLE, table);
            push_text(out, NFTA_RULE_CHAIN, chain);
            push_nested(out, NFTA_RULE_EXPRESSIONS, |out| {
                expressions.iter().for_each(|expression| expression.write(out));
            });
            push_data(out, NFTA_RULE_USERDATA, data);
        });
    }

    /// Removes the rule with this handle, or all rules of the chain.
    pub fn delete_rules(&mut self, family: Family, table: &str, chain: &str, handle: Option<u64>) {
        self.push(NFT_MSG_DELRULE, 0, family, |out| {
            push_text(out, NFTA_RULE_TABLE, table);
            push_text(out, NFTA_RULE_CHAIN, chain);
            if let Some(handle) = handle {
                push_attribute(out, NFTA_RULE_HANDLE, &handle.to_be_bytes());
            }
        });
    }

    fn push(
        &mut self,
        operation: u16,
        flags: libc::c_int,
        family: Family,
        attributes: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut body = netfilter_header(family.0, 0).to_vec();
        attributes(&mut body);
        self.requests.push(Request::new(message_type(operation), flags as u16, &body));
    }
}

/// A comment as nft keeps it: type 0, length, text with its zero byte.
fn comment_data(comment: Option<&str>) -> Vec<u8> {
    let Some(text) = comment else { return Vec::new() };
    let text = shortened(text, LONGEST_COMMENT);
    let length = u8::try_from(text.len() + 1).expect("it was shortened");
    [&[0, length][..], text.as_bytes(), &[0]].concat()
}

fn push_data(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    if !data.is_empty() {
        push_attribute(out, kind, data);
    }
}

/// With its zero byte its length is one byte.
const LONGEST_COMMENT: usize = 254;

// linux/netfilter.h
const NF_ACCEPT: u32 = 1;
/// What nft ignores: it knows the types 0 and 1.
pub(super) const USERDATA_TAG: u8 = 0x66;
/// `NFT_USERDATA_MAXLEN`
const MOST_USERDATA_BYTES: usize = 256;
