//! The rules of each place that can hold some: brought to what is wanted there, or to nothing.

mod iptables;

use std::{collections::BTreeSet, fs, io};

use flannel_netlink::Namespace;

use crate::{
    iptables::wanted,
    netfilter::Netfilter,
    nftables::{self, Expression, PlacedChain, PlacedRule, WantedTable},
    options::{FirewallOptions, ModeChoice, Name},
    report::{FirewallFault, FirewallReport},
    rules::{Family, Rules},
    tool::{Runs, Tool},
};

pub(crate) use iptables::Iptables;

/// What happened in one look at all rules.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) report: FirewallReport,
    /// Whether anything was written, so that it has to be looked at again.
    pub(crate) wrote: bool,
    /// What was not as it should be, in words.
    pub(crate) differences: Vec<String>,
}

impl Outcome {
    pub(crate) fn fault(&mut self, operation: impl Into<String>, error: &dyn std::error::Error) {
        let mut reason = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            reason = format!("{reason}: {cause}");
            next = cause.source();
        }
        self.report.faults.push(FirewallFault::new(operation, reason));
    }

    /// Adds what another look, or a look elsewhere, found and did.
    pub(crate) fn add(&mut self, other: Self) {
        self.report.read += other.report.read;
        self.report.added += other.report.added;
        self.report.removed += other.report.removed;
        self.report.drifted += other.report.drifted;
        self.report.faults.extend(other.report.faults);
        self.report.notes.extend(other.report.notes);
        self.differences.extend(other.differences);
        self.wrote |= other.wrote;
    }

    fn wrote(&mut self, added: u64, removed: u64, differences: Vec<String>) {
        self.report.added += added;
        self.report.removed += removed;
        self.report.drifted += 1;
        self.differences.extend(differences);
        self.wrote = true;
    }
}

/// Brings our tables of nftables to what is wanted.
pub(crate) fn sync_nftables(
    netfilter: &mut Netfilter,
    wanted: &[WantedTable],
    outcome: &mut Outcome,
) {
    let chains = match netfilter.chains() {
        Ok(chains) => chains,
        Err(error) => return outcome.fault("list the chains of nftables", &error),
    };
    for wanted in wanted {
        let (keyword, name) = (wanted.family.keyword(), &wanted.name);
        let found = match netfilter.table(wanted, &chains) {
            Ok(found) => found,
            Err(error) => {
                outcome.fault(format!("list table {keyword} {name} of nftables"), &error);
                continue;
            }
        };
        outcome.report.read += found.as_ref().map_or(0, |table| table.count());
        let Some(plan) = nftables::diff(found.as_ref(), wanted) else { continue };
        match netfilter.apply(&plan.ops) {
            Ok(()) => outcome.wrote(plan.added, plan.removed, plan.differences),
            Err(error) => {
                outcome.fault(format!("write table {keyword} {name} of nftables"), &error)
            }
        }
    }
}

/// The chains of others that drop what they do not accept themselves, in words.
pub(crate) fn blockers(netfilter: &mut Netfilter, families: &[Family]) -> Vec<String> {
    let chains = netfilter.chains().unwrap_or_default();
    let blockers = chains.iter().filter(|chain| {
        let ours = families.iter().any(|family| family.protocol() == chain.family);
        chain.blocks_forwarding() && (ours || chain.family == NFPROTO_INET)
    });
    let named = blockers.map(|PlacedChain { family, table, name, .. }| {
        let family = match *family {
            NFPROTO_INET => "inet",
            family if family == Family::Ipv4.protocol() => "ip",
            _ => "ip6",
        };
        format!(
            "chain {name} of table {family} {table} drops forwarded packets that it does not accept itself, and rules in \
             other tables of nftables cannot change that: accept the network there, or set EnableNFTables to false"
        )
    });
    named.collect()
}

/// Removes what is ours in the tables of iptables-nft, without running iptables.
pub(crate) fn remove_iptables_nft(netfilter: &mut Netfilter, name: &Name, outcome: &mut Outcome) {
    let chains = match netfilter.chains() {
        Ok(chains) => chains,
        Err(error) => return outcome.fault("list the chains of nftables", &error),
    };
    for family in Family::ALL {
        for wanted in wanted(Rules::default(), name) {
            let ours = |chain: &PlacedChain| {
                (chain.family, &*chain.table, &chain.name)
                    == (family.protocol(), wanted.table, &wanted.chain)
            };
            if !chains.iter().any(ours) {
                continue;
            }
            let operation = format!("remove chain {} of {}", wanted.chain, program(family));
            let rules = match netfilter.rules(family.protocol(), wanted.table) {
                Ok(rules) => rules,
                Err(error) => {
                    outcome.fault(operation, &error);
                    continue;
                }
            };
            outcome.report.read += rules.len() as u64;
            let (jumps, others): (Vec<_>, Vec<_>) = rules
                .iter()
                .filter(|rule| rule.target() == Some(&wanted.chain))
                .partition(|rule| rule.chain == wanted.hook && is_jump(rule, wanted.comment));
            let held = others.first().map(|rule| {
                format!("chain {} has a rule of others that leads to {}", rule.chain, wanted.chain)
            });
            let chain = held.is_none().then_some(&*wanted.chain);
            outcome.report.notes.extend(held);
            let inner = rules.iter().filter(|rule| chain == Some(&*rule.chain)).count();
            let count = (jumps.len() + inner) as u64;
            match netfilter.remove_chain(family.protocol(), wanted.table, &jumps, chain) {
                Ok(()) if chain.is_none() && jumps.is_empty() => {}
                Ok(()) => {
                    let gone = format!("chain {} is still there", wanted.chain);
                    outcome.wrote(0, count, vec![gone]);
                }
                Err(error) => outcome.fault(operation, &error),
            }
        }
    }
}

/// Removes what is ours in legacy iptables, if there is any legacy iptables.
pub(crate) async fn remove_legacy(
    namespace: &Namespace,
    options: &FirewallOptions,
    runs: &Runs,
    outcome: &mut Outcome,
) {
    for family in Family::ALL {
        // Who may not know may not remove either.
        if legacy_tables(namespace, family).is_none_or(|tables| tables.is_empty()) {
            continue;
        }
        let mut legacy = None;
        for variant in ["-legacy", ""] {
            if legacy.is_none() {
                let folders = &options.tool_folders;
                let found = Tool::find(namespace, folders, family, variant, runs).await;
                legacy = found.ok().flatten().filter(|tool| !tool.notifies());
            }
        }
        match legacy {
            Some(tool) => {
                let nothing = [(family, Rules::default())];
                let iptables = Iptables::with(family, tool);
                iptables.sync(nothing, &options.name, None, outcome).await;
            }
            None => outcome.report.notes.push(format!(
                "legacy {} has tables that may hold old rules of ours, and its program is not installed to look",
                program(family)
            )),
        }
    }
}

/// Whether the rule is the one that leads from a built-in chain to ours: nothing but our comment and the jump.
fn is_jump(rule: &PlacedRule, comment: &str) -> bool {
    let mut commented = false;
    let plain = rule.expressions.iter().all(|expression| match expression {
        Expression::Comment(text) => {
            commented = text == comment;
            commented
        }
        Expression::Other(name) => name == "counter",
        Expression::Verdict { .. } => true,
        _ => false,
    });
    plain && commented
}

/// Those of our two tables that legacy iptables has; `None` if that may not be known.
pub(crate) fn legacy_tables(namespace: &Namespace, family: Family) -> Option<BTreeSet<String>> {
    let file = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match namespace.run(|| fs::read_to_string(file)).ok()? {
        Ok(names) => Some(names.lines().filter(is_table).map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(BTreeSet::new()),
        Err(_) => None,
    }
}

/// Whether we have rules in this table of iptables.
fn is_table(name: &&str) -> bool {
    ["filter", "nat"].contains(name)
}

fn program(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    }
}

/// Why a mode that was asked for is not there, with what to do.
pub(crate) fn remedy(choice: ModeChoice) -> &'static str {
    match choice {
        ModeChoice::Auto => {
            "iptables is not installed and the kernel has no nf_tables; install iptables or load nf_tables"
        }
        ModeChoice::Iptables => {
            "iptables, iptables-save and iptables-restore are not installed; install them, or set EnableNFTables to true"
        }
        ModeChoice::Nftables => {
            "the kernel has no nf_tables, or does not let us use it; load nf_tables, or set EnableNFTables to false"
        }
    }
}

/// The family of tables for both IPv4 and IPv6, linux/netfilter.h.
pub(crate) const NFPROTO_INET: u8 = 1;
