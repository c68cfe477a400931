//! From what is there to what is wanted, as commands for `iptables-restore --noflush`.

use super::{
    Wanted,
    rule_text::{Specification, leads_to},
    save_output::{Chain, Table},
};
use crate::rules::Rule;

/// The commands for one table, which iptables does together or not at all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Change {
    /// The table.
    pub(crate) table: &'static str,
    pub(crate) lines: Vec<String>,
    pub(crate) added: u64,
    pub(crate) removed: u64,
    /// What is not as it should be, in words.
    pub(crate) differences: Vec<String>,
    /// Why a part of it has to wait.
    pub(crate) blocked: Option<String>,
}

impl Change {
    /// The input for `iptables-restore`.
    pub(crate) fn payload(&self) -> String {
        format!("*{}\n{}\nCOMMIT\n", self.table, self.lines.join("\n"))
    }
}

/// What has to be done to a table, `None` if nothing. A table that is not there counts as empty.
pub(crate) fn diff(table: Option<&Table>, wanted: &Wanted) -> Option<Change> {
    let none = Table::default();
    let table = table.unwrap_or(&none);
    let unchanged = Change { table: wanted.table, ..Change::default() };
    let mut change = unchanged.clone();
    let chain = table.chains.get(&wanted.chain);
    let is_wanted = !wanted.rules.is_empty();
    if is_wanted && !chain.is_some_and(|chain| wanted.is_in(chain)) {
        change.fill(wanted, chain);
    }
    change.lead(wanted, table.chains.get(wanted.hook));
    if !is_wanted && let Some(chain) = chain {
        change.remove(wanted, table, chain);
    }
    (change != unchanged).then_some(change)
}

impl Wanted {
    fn is_in(&self, chain: &Chain) -> bool {
        let there = chain.rules.iter().map(|text| self.read(text));
        there.eq(self.rules.iter().cloned().map(Some))
    }

    /// A rule of our chain; `None` if it is none of the kind we write.
    fn read(&self, text: &str) -> Option<Rule> {
        let specification = Specification::parse(text)?;
        specification.rule.filter(|_| specification.comment == self.comment)
    }

    /// What a rule in the built-in chain is to us.
    fn ownership(&self, text: &str) -> Ownership {
        match Specification::parse(text) {
            // nft loses the comment when it saves and loads rules. Nobody else has a reason to lead all packets to our chain.
            Some(read) if read.comment.is_empty() && read.target == self.chain => {
                Ownership::BareJump
            }
            Some(read) if read.comment != self.comment => Ownership::Foreign,
            Some(read) if read.target == self.chain => Ownership::Jump,
            // Of flannel before 0.20, which wrote straight into the built-in chains.
            Some(Specification { rule: Some(_), .. }) if self.removes_old => Ownership::Old,
            _ => Ownership::Foreign,
        }
    }
}

enum Ownership {
    BareJump,
    Foreign,
    Jump,
    Old,
}

impl Change {
    /// Makes our chain what it should be.
    fn fill(&mut self, wanted: &Wanted, chain: Option<&Chain>) {
        // Creates the chain, or empties it.
        self.lines.push(format!(":{} - [0:0]", wanted.chain));
        let there = chain.map_or(&[][..], |chain| &chain.rules);
        let read: Vec<_> = there.iter().map(|text| wanted.read(text)).collect();
        let is_missing = |rule: &&Rule| !read.iter().flatten().any(|read| read == *rule);
        let missing: Vec<_> = wanted.rules.iter().filter(is_missing).collect();
        let is_known =
            |rule: &Option<Rule>| rule.as_ref().is_some_and(|rule| wanted.rules.contains(rule));
        let surplus: Vec<_> = there.iter().zip(&read).filter(|(_, rule)| !is_known(rule)).collect();
        let (mut added, mut removed) = (missing.len(), surplus.len());
        let differences = &mut self.differences;
        if chain.is_none() {
            differences.push(format!("chain {} is not there", wanted.chain));
        } else if missing.is_empty() && surplus.is_empty() {
            differences.push(format!("chain {} has its rules in another order", wanted.chain));
            (added, removed) = (wanted.rules.len(), there.len());
        } else {
            let lost = missing.iter().map(|rule| wanted.text(rule));
            differences.extend(lost.map(|text| format!("missing -A {} {text}", wanted.chain)));
            let found = surplus.iter().map(|(text, _)| text);
            differences.extend(found.map(|text| format!("surplus -A {} {text}", wanted.chain)));
        }
        self.added += added as u64;
        self.removed += removed as u64;
        let texts = wanted.rules.iter().map(|rule| wanted.text(rule));
        self.lines.extend(texts.map(|text| format!("-A {} {text}", wanted.chain)));
    }

    /// Leaves one jump in the built-in chain if it is wanted, none otherwise.
    fn lead(&mut self, wanted: &Wanted, hook: Option<&Chain>) {
        let mut jumps = 0;
        for text in hook.iter().flat_map(|chain| &chain.rules) {
            match wanted.ownership(text) {
                Ownership::Foreign => continue,
                Ownership::Jump if !wanted.rules.is_empty() => {
                    jumps += 1;
                    if jumps == 1 {
                        continue;
                    }
                }
                Ownership::BareJump | Ownership::Jump | Ownership::Old => {}
            }
            self.lines.push(format!("-D {} {text}", wanted.hook));
            self.differences.push(format!("surplus -A {} {text}", wanted.hook));
            self.removed += 1;
        }
        if !wanted.rules.is_empty() && jumps == 0 {
            let line = format!("-A {} {}", wanted.hook, wanted.jump());
            self.differences.push(format!("missing {line}"));
            self.lines.push(line);
            self.added += 1;
        }
    }

    /// Removes our chain. One that others lead to is only emptied.
    fn remove(&mut self, wanted: &Wanted, table: &Table, chain: &Chain) {
        let ours = |name: &str, text: &str| {
            name == wanted.hook
                && matches!(wanted.ownership(text), Ownership::BareJump | Ownership::Jump)
        };
        let holder = table.chains.iter().find(|(name, chain)| {
            chain.rules.iter().any(|text| leads_to(text, &wanted.chain) && !ours(name, text))
        });
        self.removed += chain.rules.len() as u64;
        if let Some((name, _)) = holder {
            self.blocked =
                Some(format!("chain {name} has a rule of others that leads to {}", wanted.chain));
            if !chain.rules.is_empty() {
                self.lines.push(format!("-F {}", wanted.chain));
            }
            return;
        }
        self.differences.push(format!("chain {} is still there", wanted.chain));
        self.lines.push(format!("-F {}", wanted.chain));
        self.lines.push(format!("-X {}", wanted.chain));
    }
}
