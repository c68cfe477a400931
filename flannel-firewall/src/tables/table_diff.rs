//! What is there, and what leads from there to what is wanted.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::{DesiredTable, rule_text, source_of};
use crate::{
    nftables::{Batch, Expression, Family as TableFamily, Hook},
    rules::Family,
};

/// A table as the kernel has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ObservedTable {
    /// `NFT_TABLE_F_*`; a dormant table has no effect.
    pub(crate) flags: u32,
    /// How many chains and other things it has.
    pub(crate) members: u32,
    pub(crate) chains: BTreeMap<String, ObservedChain>,
}

/// A chain as the kernel has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ObservedChain {
    /// `None` for chains that only others lead to.
    pub(crate) hook: Option<Hook>,
    /// Whether packets that no rule decides about are dropped.
    pub(crate) drops: bool,
    pub(crate) rules: Vec<Vec<Expression>>,
}

/// A step, all of which are done together or not at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Create,
    Delete,
}

/// The steps for one table, and what they change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) added: u64,
    pub(crate) removed: u64,
    /// What is not as it should be, in words.
    pub(crate) differences: Vec<String>,
}

/// What has to be done to a table, `None` if nothing. What differs in any way is written anew as a whole.
pub(crate) fn diff(found: Option<&ObservedTable>, wanted: &DesiredTable) -> Option<Plan> {
    let goal = (!wanted.chains.is_empty()).then(|| wanted.as_observed());
    if found == goal.as_ref() {
        return None;
    }
    let mut plan = Plan::default();
    if found.is_some() {
        plan.steps.push(Step::Delete);
    }
    if goal.is_some() {
        plan.steps.push(Step::Create);
    }
    let (keyword, name) = (wanted.family.keyword(), &wanted.name);
    match (found, &goal) {
        (None, _) => plan.differences.push(format!("table {keyword} {name} is not there")),
        (_, None) => plan.differences.push(format!("table {keyword} {name} is still there")),
        (Some(found), Some(goal)) => plan.differences = differences(found, goal, wanted),
    }
    let none = ObservedTable::default();
    let (found, goal) = (found.unwrap_or(&none), goal.as_ref().unwrap_or(&none));
    (plan.added, plan.removed) = (surplus(goal, found), surplus(found, goal));
    if (plan.added, plan.removed) == (0, 0) {
        (plan.added, plan.removed) = (goal.count(), found.count());
    }
    Some(plan)
}

impl ObservedTable {
    /// The blocks that its rules are about.
    pub(crate) fn sources(&self, family: Family) -> Vec<IpNetwork> {
        let rules = self.chains.values().flat_map(|chain| &chain.rules);
        rules.filter_map(|expressions| source_of(family, expressions)).collect()
    }

    /// How many rules it has.
    pub(crate) fn count(&self) -> u64 {
        self.chains.values().map(|chain| chain.rules.len() as u64).sum()
    }
}

impl DesiredTable {
    /// How the kernel shows it once it is there.
    pub(crate) fn as_observed(&self) -> ObservedTable {
        let chains = self.chains.iter().map(|chain| {
            let rules = chain.rules.iter().map(|rule| self.compile(rule));
            let hook = Some(chain.hook.clone());
            (chain.name.to_owned(), ObservedChain { hook, drops: false, rules: rules.collect() })
        });
        ObservedTable { flags: 0, members: self.chains.len() as u32, chains: chains.collect() }
    }
}

impl DesiredTable {
    /// The steps as the kernel takes them.
    pub(crate) fn batch(&self, steps: &[Step]) -> Batch {
        let (mut batch, family) = (Batch::default(), TableFamily::from(self.family));
        let table = &*self.name;
        for step in steps {
            // A table that went meanwhile would fail the whole batch, so it is there for sure before it is deleted.
            batch.add_table(family, table, 0, Some(&self.comment()));
            if *step == Step::Delete {
                batch.delete_table(family, table);
                continue;
            }
            for chain in &self.chains {
                batch.add_chain(family, table, chain.name, Some(&chain.hook), Some(chain.comment));
                for rule in &chain.rules {
                    batch.add_rule(family, table, chain.name, &self.compile(rule));
                }
            }
        }
        batch
    }
}

/// How many rules `one` has that `other` has not.
fn surplus(one: &ObservedTable, other: &ObservedTable) -> u64 {
    let count = one.chains.iter().map(|(name, chain)| {
        let theirs = other.chains.get(name).map_or(&[][..], |chain| &chain.rules);
        chain.rules.iter().filter(|rule| !theirs.contains(rule)).count() as u64
    });
    count.sum()
}

fn differences(found: &ObservedTable, goal: &ObservedTable, wanted: &DesiredTable) -> Vec<String> {
    let mut differences = Vec::new();
    if (found.flags, found.members) != (goal.flags, goal.members) {
        differences.push(format!("table {} is altered", wanted.name));
    }
    for chain in &wanted.chains {
        let (name, none) = (chain.name, ObservedChain::default());
        let goal = goal.chains.get(name).unwrap_or(&none);
        let Some(found) = found.chains.get(name) else {
            differences.push(format!("chain {name} is not there"));
            continue;
        };
        let before = differences.len();
        for (rule, expressions) in chain.rules.iter().zip(&goal.rules) {
            if !found.rules.contains(expressions) {
                differences.push(format!("missing in {name}: {}", rule_text(wanted.family, rule)));
            }
        }
        let surplus = found.rules.iter().filter(|rule| !goal.rules.contains(rule)).count();
        if surplus > 0 {
            differences.push(format!("{surplus} surplus in {name}"));
        }
        if differences.len() == before && found != goal {
            differences.push(format!("chain {name} is altered, or has its rules in another order"));
        }
    }
    if differences.is_empty() {
        differences.push(format!("table {} has more than it should", wanted.name));
    }
    differences
}
