//! What `iptables-save` prints.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::{Wanted, rule_text::Specification};

/// The tables of one family.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// By name.
    pub tables: BTreeMap<String, Table>,
    /// Tables that iptables cannot read, because they have rules that only nftables knows.
    pub unreadable: Vec<String>,
}

/// The chains of one table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Table {
    /// By name.
    pub chains: BTreeMap<String, Chain>,
}

/// One chain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Chain {
    /// What happens to packets that no rule decides about; `-` in chains that are not built in.
    pub policy: String,
    /// The rules as text, without the chain's name.
    pub rules: Vec<String>,
}

impl Listing {
    /// Reads what can be read; other lines count as absent.
    pub fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        let mut table = None;
        for line in text.lines() {
            let line = line.trim();
            if let Some(rest) = line.strip_prefix("# Table `") {
                let name = rest.split_once('\'').filter(|(_, rest)| rest.contains("incompatible"));
                listing.unreadable.extend(name.map(|(name, _)| name.to_owned()));
            } else if let Some(name) = line.strip_prefix('*') {
                table = Some(listing.tables.entry(name.to_owned()).or_default());
            } else if line == "COMMIT" {
                table = None;
            } else if let Some(table) = &mut table {
                table.read(line);
            }
        }
        listing
    }

    /// The blocks that the rules in these chains are about.
    pub(crate) fn sources(&self, wanted: &[Wanted]) -> Vec<IpNetwork> {
        let chains =
            wanted.iter().filter_map(|it| self.tables.get(it.table)?.chains.get(&it.chain));
        let rules = chains.flat_map(|chain| &chain.rules);
        rules.filter_map(|text| Some(Specification::parse(text)?.rule?.source?.block)).collect()
    }

    /// How many rules there are.
    pub(crate) fn count(&self) -> u64 {
        let chains = self.tables.values().flat_map(|table| table.chains.values());
        chains.map(|chain| chain.rules.len() as u64).sum()
    }
}

impl Table {
    fn read(&mut self, line: &str) {
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            if let Some(name) = words.next() {
                let policy = words.next().unwrap_or("-").to_owned();
                self.chains.entry(name.to_owned()).or_default().policy = policy;
            }
            return;
        }
        // With counters, rules begin with [packets:bytes].
        let line = match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((_, rest)) => rest.trim_start(),
            None => line,
        };
        if let Some((chain, rule)) =
            line.strip_prefix("-A ").map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
        {
            self.chains.entry(chain.to_owned()).or_default().rules.push(rule.trim().to_owned());
        }
    }
}
