//! The way of packets through tables, as a plain function.

use std::collections::BTreeMap;

use super::{Effect, Finding, packet::PacketPath, ternary::Ternary};

/// A table with all that packets may meet in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Table {
    /// For people: `ip filter`.
    pub(crate) name: String,
    pub(crate) chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Chain {
    /// Where packets enter it from outside of the table.
    pub(crate) place: Option<Place>,
    /// Whether packets that no rule decides about are dropped.
    pub(crate) drops: bool,
    pub(crate) rules: Vec<Rule>,
}

/// A place that packets pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// `NF_INET_*` of linux/netfilter.h.
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    /// Whether it is about addresses, and not about passing.
    pub(crate) translates: bool,
}

/// A rule as it is for these packets. A rule that looks into a map may be several.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rule {
    /// Which of the chain's rules it is, from 1.
    pub(crate) number: usize,
    pub(crate) fits: Ternary,
    pub(crate) step: Step,
}

/// What happens to packets that a rule fits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Accept,
    Continue,
    Drop,
    Goto(String),
    Jump(String),
    Masquerade,
    Return,
}

/// What is in the way of packets, in the order in which it is met.
pub(super) fn findings(path: &PacketPath, tables: &[Table]) -> Vec<Finding> {
    let order = |hook: u32| path.hooks().iter().position(|passed| *passed == hook);
    let mut entries: Vec<_> = tables
        .iter()
        .flat_map(|table| table.chains.iter().map(move |(name, chain)| (table, name, chain)))
        .filter_map(|(table, name, chain)| {
            let place = chain.place?;
            Some(((order(place.hook)?, place.priority), place, table, name, chain))
        })
        .collect();
    entries.sort_by_key(|(key, ..)| *key);
    let mut found = Vec::new();
    let mut translated = None;
    for (_, place, table, name, chain) in entries {
        // The first chain that says something about addresses decides.
        if place.translates && translated == Some(place.hook) {
            continue;
        }
        let before = found.len();
        let mut walk = Walk { table, found: &mut found, may_be_accepted: false };
        let end = walk.chain(name, chain, true, DEEPEST);
        if end == End::Passed && chain.drops {
            walk.note(Effect::Drops, name, "its policy".into(), true);
        }
        let decided = found[before..].iter().find(|finding| finding.certain);
        match decided.map(|finding| finding.effect) {
            Some(Effect::Drops) => return found,
            Some(Effect::Masquerades) => translated = Some(place.hook),
            None => {}
        }
    }
    found
}

/// A walk through one base chain and what it leads to.
struct Walk<'a> {
    table: &'a Table,
    found: &'a mut Vec<Finding>,
    /// Whether a rule passed so far may have accepted the packets, so that nothing behind it is certain.
    may_be_accepted: bool,
}

/// How a walk through one chain ended, for packets that came to it and that nothing unknown has decided about.
#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    /// Some rule decided about all of them.
    Decided,
    /// No rule did.
    Passed,
}

impl Walk<'_> {
    /// `certain` is whether all packets come here.
    fn chain(&mut self, name: &str, chain: &Chain, certain: bool, depth: usize) -> End {
        if depth == 0 {
            return End::Passed;
        }
        // Whether all packets that came into this chain come to the next rule.
        let mut all = true;
        for rule in &chain.rules {
            let fits = match rule.fits {
                Ternary::False => continue,
                Ternary::Unknown => false,
                Ternary::True => true,
            };
            let certain = certain && all && fits;
            let number = || format!("rule {}", rule.number);
            let end = match &rule.step {
                Step::Continue => End::Passed,
                Step::Accept => {
                    self.may_be_accepted |= !certain;
                    End::Decided
                }
                Step::Return if fits => return End::Passed,
                Step::Return => {
                    all = false;
                    End::Passed
                }
                Step::Drop => self.note(Effect::Drops, name, number(), certain),
                Step::Masquerade => self.note(Effect::Masquerades, name, number(), certain),
                Step::Goto(to) | Step::Jump(to) => {
                    let target = self.table.chains.get(to);
                    let end = target
                        .map_or(End::Passed, |chain| self.chain(to, chain, certain, depth - 1));
                    if matches!(rule.step, Step::Goto(_)) {
                        if fits {
                            return if all { end } else { End::Passed };
                        }
                        all = false;
                    }
                    end
                }
            };
            if fits && end == End::Decided {
                // Packets that may have returned before are for the chain that led here.
                return if all { End::Decided } else { End::Passed };
            }
        }
        End::Passed
    }

    fn note(&mut self, effect: Effect, chain: &str, rule: String, certain: bool) -> End {
        let place = format!("chain {chain} of table {}", self.table.name);
        let certain = certain && !self.may_be_accepted;
        self.found.push(Finding { effect, certain, place, rule });
        End::Decided
    }
}

/// How many chains may lead to each other: as many as the kernel allows.
const DEEPEST: usize = 16;

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
