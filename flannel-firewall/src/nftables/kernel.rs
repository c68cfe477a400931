//! Tables, chains and rules as messages to and from the kernel.

use std::collections::BTreeMap;

use flannel_netlink::KernelError;
use nix::libc;

use super::{
    Expression, FoundChain, FoundTable, HOOK_FORWARD, Hook, Op, WantedTable,
    expression::{NFT_GOTO, NFT_JUMP},
};
use crate::{
    netfilter::{DUMP, HEADER, Netfilter, Step},
    wire::{Message, Writer, number},
};

/// A chain with where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PlacedChain {
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    pub(crate) chain: FoundChain,
}

/// A rule with where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PlacedRule {
    pub(crate) chain: String,
    /// The kernel's number for it.
    pub(crate) handle: u64,
    pub(crate) expressions: Vec<Expression>,
}

impl PlacedRule {
    /// The chain that the rule leads to.
    pub(crate) fn target(&self) -> Option<&str> {
        self.expressions.iter().find_map(|expression| match expression {
            Expression::Verdict { code: NFT_GOTO | NFT_JUMP, chain } => chain.as_deref(),
            _ => None,
        })
    }
}

impl PlacedChain {
    /// Whether packets are dropped here that no rule of it accepts, whatever our rules say.
    pub(crate) fn blocks_forwarding(&self) -> bool {
        let hook = self.chain.hook.as_ref();
        self.chain.drops && hook.is_some_and(|hook| hook.number == HOOK_FORWARD)
    }
}

impl Netfilter {
    /// The table, if it is there. `chains` are those of all tables.
    pub(crate) fn table(
        &mut self,
        wanted: &WantedTable,
        chains: &[PlacedChain],
    ) -> Result<Option<FoundTable>, KernelError> {
        let (family, name) = (wanted.family.protocol(), &wanted.name);
        let mut table = FoundTable::default();
        let step = Step {
            kind: NFT_MSG_GETTABLE,
            flags: 0,
            family,
            body: Box::new(|out| out.text(NFTA_TABLE_NAME, name)),
        };
        let asked = self.ask(&step, |message| {
            for attribute in message.attributes(HEADER) {
                match attribute.kind {
                    NFTA_TABLE_FLAGS => table.flags = number(attribute).unwrap_or(u32::MAX),
                    NFTA_TABLE_USE => table.members = number(attribute).unwrap_or(u32::MAX),
                    _ => {}
                }
            }
        });
        match asked {
            Err(error) if error.not_found() => return Ok(None),
            result => result?,
        }
        // Who owns a table alone says nothing about what is in it.
        table.flags &= !NFT_TABLE_F_OWNER;
        let ours = chains.iter().filter(|chain| (chain.family, &chain.table) == (family, name));
        table.chains = ours.map(|chain| (chain.name.clone(), chain.chain.clone())).collect();
        for rule in self.rules(family, name)? {
            table.chains.entry(rule.chain).or_default().rules.push(rule.expressions);
        }
        Ok(Some(table))
    }

    /// The chains of all tables of all families, without their rules.
    pub(crate) fn chains(&mut self) -> Result<Vec<PlacedChain>, KernelError> {
        let step = Step { kind: NFT_MSG_GETCHAIN, flags: DUMP, family: 0, body: Box::new(|_| {}) };
        self.list(&step, read_chain)
    }

    /// The rules of one table, in their order.
    pub(crate) fn rules(
        &mut self,
        family: u8,
        table: &str,
    ) -> Result<Vec<PlacedRule>, KernelError> {
        let body = Box::new(|out: &mut Writer| out.text(NFTA_RULE_TABLE, table));
        let step = Step { kind: NFT_MSG_GETRULE, flags: DUMP, family, body };
        match self.list(&step, |message| read_rule(message, table)) {
            Err(error) if error.not_found() => Ok(Vec::new()),
            result => result,
        }
    }

    /// Lists again when somebody changed something meanwhile.
    fn list<T>(
        &mut self,
        step: &Step<'_>,
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let mut attempts = 0;
        loop {
            let mut found = Vec::new();
            match self.ask(step, |message| found.extend(read(message))) {
                Err(error) if error.errno == libc::EINTR && attempts < LIST_ATTEMPTS => {
                    attempts += 1;
                }
                result => return result.map(|()| found),
            }
        }
    }

    /// Does all of `ops` or none.
    pub(crate) fn apply(&mut self, ops: &[Op<'_>]) -> Result<(), KernelError> {
        self.transact(&ops.iter().flat_map(Op::steps).collect::<Vec<_>>())
    }

    /// Removes rules by number, and a chain with all its rules, from a table of iptables-nft.
    pub(crate) fn remove_chain(
        &mut self,
        family: u8,
        table: &str,
        rules: &[&PlacedRule],
        chain: Option<&str>,
    ) -> Result<(), KernelError> {
        let mut steps = Vec::new();
        for rule in rules {
            steps.push(Step {
                kind: NFT_MSG_DELRULE,
                flags: 0,
                family,
                body: Box::new(|out| {
                    out.text(NFTA_RULE_TABLE, table);
                    out.text(NFTA_RULE_CHAIN, &rule.chain);
                    out.attribute(NFTA_RULE_HANDLE, &rule.handle.to_be_bytes());
                }),
            });
        }
        if let Some(chain) = chain {
            let body = move |out: &mut Writer| {
                out.text(NFTA_RULE_TABLE, table);
                out.text(NFTA_RULE_CHAIN, chain);
            };
            let (kind, body) = (NFT_MSG_DELRULE, Box::new(body));
            steps.push(Step { kind, flags: 0, family, body });
            let body = move |out: &mut Writer| {
                out.text(NFTA_CHAIN_TABLE, table);
                out.text(NFTA_CHAIN_NAME, chain);
            };
            let (kind, body) = (NFT_MSG_DELCHAIN, Box::new(body));
            steps.push(Step { kind, flags: 0, family, body });
        }
        if steps.is_empty() { Ok(()) } else { self.transact(&steps) }
    }
}

impl<'a> Op<'a> {
    fn steps(&self) -> Vec<Step<'a>> {
        match *self {
            Op::Delete(table) => {
                let delete = Step {
                    kind: NFT_MSG_DELTABLE,
                    flags: 0,
                    family: table.family.protocol(),
                    body: Box::new(|out| out.text(NFTA_TABLE_NAME, &table.name)),
                };
                // A table that went meanwhile would fail the whole batch, so it is there for sure.
                vec![create_table(table), delete]
            }
            Op::Create(table) => {
                let mut steps = vec![create_table(table)];
                for chain in &table.chains {
                    steps.push(create_chain(table, chain));
                    steps.extend(chain.rules.iter().map(|rule| {
                        let expressions = Expression::compile(table.family, rule);
                        create_rule(table, chain.name, expressions)
                    }));
                }
                steps
            }
        }
    }
}

fn create_table(table: &WantedTable) -> Step<'_> {
    Step {
        kind: NFT_MSG_NEWTABLE,
        flags: libc::NLM_F_CREATE as u16,
        family: table.family.protocol(),
        body: Box::new(|out| {
            out.text(NFTA_TABLE_NAME, &table.name);
            out.number(NFTA_TABLE_FLAGS, 0);
            out.attribute(NFTA_TABLE_USERDATA, &comment(&table.comment()));
        }),
    }
}

fn create_chain<'a>(table: &'a WantedTable, chain: &'a super::WantedChain) -> Step<'a> {
    let hook = &chain.hook;
    Step {
        kind: NFT_MSG_NEWCHAIN,
        flags: libc::NLM_F_CREATE as u16,
        family: table.family.protocol(),
        body: Box::new(move |out| {
            out.text(NFTA_CHAIN_TABLE, &table.name);
            out.text(NFTA_CHAIN_NAME, chain.name);
            out.nest(NFTA_CHAIN_HOOK, |out| {
                out.number(NFTA_HOOK_HOOKNUM, hook.number);
                out.number(NFTA_HOOK_PRIORITY, hook.priority.cast_unsigned());
            });
            out.number(NFTA_CHAIN_POLICY, NF_ACCEPT);
            out.text(NFTA_CHAIN_TYPE, &hook.kind);
            out.attribute(NFTA_CHAIN_USERDATA, &comment(chain.comment));
        }),
    }
}

fn create_rule<'a>(
    table: &'a WantedTable,
    chain: &'a str,
    expressions: Vec<Expression>,
) -> Step<'a> {
    Step {
        kind: NFT_MSG_NEWRULE,
        flags: (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16,
        family: table.family.protocol(),
        body: Box::new(move |out| {
            out.text(NFTA_RULE_TABLE, &table.name);
            out.text(NFTA_RULE_CHAIN, chain);
            out.nest(NFTA_RULE_EXPRESSIONS, |out| {
                expressions.iter().for_each(|expression| expression.write(out));
            });
        }),
    }
}

/// A comment as nft keeps it: type 0, length, text with its zero byte.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("our comments are short");
    [&[0, length], text.as_bytes(), &[0]].concat()
}

fn read_chain(message: &Message<'_>) -> Option<PlacedChain> {
    let (mut table, mut name, mut kind) = (None, None, String::new());
    let mut chain = FoundChain::default();
    let mut place = None;
    for attribute in message.attributes(HEADER) {
        match attribute.kind {
            NFTA_CHAIN_TABLE => table = attribute.text(),
            NFTA_CHAIN_NAME => name = attribute.text(),
            NFTA_CHAIN_TYPE => attribute.text().unwrap_or_default().clone_into(&mut kind),
            NFTA_CHAIN_POLICY => chain.drops = number(attribute) == Some(NF_DROP),
            NFTA_CHAIN_HOOK => {
                let values: BTreeMap<u16, u32> = attribute
                    .nested()
                    .filter_map(|inner| Some((inner.kind, number(inner)?)))
                    .collect();
                let hook = values.get(&NFTA_HOOK_HOOKNUM).copied();
                place = hook.zip(values.get(&NFTA_HOOK_PRIORITY).copied());
            }
            _ => {}
        }
    }
    chain.hook =
        place.map(|(number, priority)| Hook { kind, number, priority: priority.cast_signed() });
    let (table, name) = (table?.to_owned(), name?.to_owned());
    Some(PlacedChain { family: message.family()?, table, name, chain })
}

/// `wanted` is the table: old kernels list all of them, whatever is asked for.
fn read_rule(message: &Message<'_>, wanted: &str) -> Option<PlacedRule> {
    let (mut table, mut chain, mut handle) = (None, None, 0);
    let mut expressions = Vec::new();
    for attribute in message.attributes(HEADER) {
        match attribute.kind {
            NFTA_RULE_TABLE => table = attribute.text(),
            NFTA_RULE_CHAIN => chain = attribute.text(),
            NFTA_RULE_HANDLE => {
                handle = attribute.value.first_chunk().map_or(0, |h| u64::from_be_bytes(*h));
            }
            NFTA_RULE_EXPRESSIONS => {
                expressions = attribute.nested().map(Expression::read).collect();
            }
            _ => {}
        }
    }
    let chain = chain?.to_owned();
    (table? == wanted).then_some(PlacedRule { chain, handle, expressions })
}

/// How often a listing is tried while somebody keeps changing what it lists.
const LIST_ATTEMPTS: usize = 10;

// linux/netfilter.h
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

// linux/netfilter/nf_tables.h
pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
pub(super) const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
pub(super) const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
pub(super) const NFT_MSG_DELRULE: u16 = 8;
pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USE: u16 = 3;
const NFTA_TABLE_USERDATA: u16 = 6;
pub(super) const NFT_TABLE_F_OWNER: u32 = 2;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_CHAIN_USERDATA: u16 = 12;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
