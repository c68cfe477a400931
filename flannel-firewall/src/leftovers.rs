//! What other modes left, and what saving and loading all rules with nft makes of ours.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use flannel_netlink::{KernelError, Namespace};

use crate::{
    iptables::{Iptables, Program, RunCounter, wanted},
    names::Names,
    nftables::{Batch, ChainInfo, Client, Expression, Family as TableFamily, RuleInfo, Verdict},
    options::FirewallOptions,
    outcome::Outcome,
    rules::{Family, Rules},
    tables::source_of,
};

/// Removes what is ours in the tables of iptables-nft, without running iptables.
pub(crate) async fn remove_iptables_nft(client: &mut Client, names: &Names, outcome: &mut Outcome) {
    let chains = match client.chains().await {
        Ok(chains) => chains,
        Err(error) => return outcome.note_failure("list the chains of nftables", &error),
    };
    for family in Family::ALL {
        for name in names.all(family) {
            for wanted in wanted(Rules::default(), &name) {
                let of = TableFamily::from(family);
                let ours = |chain: &ChainInfo| {
                    (chain.family, &*chain.table, &chain.name) == (of, wanted.table, &wanted.chain)
                };
                if !chains.iter().any(ours) {
                    continue;
                }
                let operation =
                    format!("remove chain {} of {}", wanted.chain, program_name(family));
                let rules = match client.rules(of, wanted.table).await {
                    Ok(rules) => rules,
                    Err(error) => {
                        outcome.note_failure(&operation, &error);
                        continue;
                    }
                };
                outcome.report.read += rules.len() as u64;
                let inner: Vec<_> =
                    rules.iter().filter(|rule| rule.chain == wanted.chain).collect();
                let sources = inner.iter().filter_map(|rule| source_of(family, &rule.expressions));
                if names.is_foreign(family, sources) {
                    continue;
                }
                let (jumps, others): (Vec<_>, Vec<_>) = rules
                    .iter()
                    .filter(|rule| rule.target() == Some(&wanted.chain))
                    .partition(|rule| rule.chain == wanted.hook && is_jump(rule, wanted.comment));
                let mut batch = Batch::default();
                for rule in &jumps {
                    batch.delete_rules(of, wanted.table, &rule.chain, Some(rule.handle));
                }
                let mut removed = jumps.len();
                match others.first() {
                    Some(held) => outcome.report.notes.push(format!(
                        "chain {} has a rule of others that leads to {}",
                        held.chain, wanted.chain
                    )),
                    None => {
                        batch.delete_rules(of, wanted.table, &wanted.chain, None);
                        batch.delete_chain(of, wanted.table, &wanted.chain);
                        removed += inner.len();
                    }
                }
                match client.apply(&batch).await {
                    Ok(()) if batch.is_empty() => {}
                    Ok(()) => {
                        let gone = format!("chain {} is still there", wanted.chain);
                        outcome.wrote(0, removed as u64, vec![gone]);
                    }
                    Err(error) => outcome.note_failure(&operation, &error),
                }
            }
        }
    }
}

/// Removes those of our rules in the tables of iptables-nft that are not in iptables' own words, and says how many there were.
pub(crate) async fn remove_uncommented(
    client: &mut Client,
    family: Family,
    names: &Names,
) -> Result<u64, KernelError> {
    let of = TableFamily::from(family);
    let (mut batch, mut removed) = (Batch::default(), 0);
    for name in names.all(family) {
        for wanted in wanted(Rules::default(), &name) {
            let rules = client.rules(of, wanted.table).await?;
            let inner = rules.iter().filter(|rule| rule.chain == wanted.chain);
            let sources = inner.filter_map(|rule| source_of(family, &rule.expressions));
            if names.is_foreign(family, sources) {
                continue;
            }
            let copies = rules.iter().filter(|rule| {
                let commented =
                    rule.expressions.iter().any(|it| matches!(it, Expression::Comment(_)));
                let jumps = rule.chain == wanted.hook
                    && rule.target() == Some(&wanted.chain)
                    && is_jump(rule, wanted.comment);
                !commented && (rule.chain == wanted.chain || jumps)
            });
            for rule in copies {
                batch.delete_rules(of, wanted.table, &rule.chain, Some(rule.handle));
                removed += 1;
            }
        }
    }
    client.apply(&batch).await.map(|()| removed)
}

/// Removes what is ours in legacy iptables, if there is any legacy iptables.
pub(crate) async fn remove_legacy(
    namespace: &Namespace,
    options: &FirewallOptions,
    names: &mut Names,
    runs: &RunCounter,
    outcome: &mut Outcome,
) {
    for family in Family::ALL {
        // Who may not know may not remove either.
        if legacy_tables(namespace, family).is_none_or(|tables| tables.is_empty()) {
            continue;
        }
        match find_legacy(namespace, &options.tool_folders, family, runs).await {
            Some(program) => {
                let mut look = Outcome::default();
                let nothing = [(family, Rules::default())];
                let mut iptables = Iptables::with(family, program);
                iptables.sync(nothing, names, None, &mut look).await;
                look.downgrade_faults();
                outcome.add(look);
            }
            None => outcome.report.notes.push(format!(
                "legacy {} has tables that may hold old rules of ours, and its program is not installed to look",
                program_name(family)
            )),
        }
    }
}

/// The program of legacy iptables, under whatever name.
pub(crate) async fn find_legacy(
    namespace: &Namespace,
    folders: &[PathBuf],
    family: Family,
    runs: &RunCounter,
) -> Option<Program> {
    for variant in ["-legacy", ""] {
        let found = Program::find(namespace, folders, family, variant, runs).await;
        if let Ok(Some(program)) = found
            && !program.notifies()
        {
            return Some(program);
        }
    }
    None
}

/// Whether the rule is the one that leads from a built-in chain to ours: nothing but our comment, if it has one, and the jump.
fn is_jump(rule: &RuleInfo, comment: &str) -> bool {
    rule.expressions.iter().all(|expression| match expression {
        Expression::Comment(text) => text == comment,
        Expression::Other(name) => name == "counter",
        Expression::Verdict(verdict) => matches!(verdict, Verdict::Jump(_)),
        _ => false,
    })
}

/// Those of our two tables that legacy iptables has; `None` if that may not be known.
pub(crate) fn legacy_tables(namespace: &Namespace, family: Family) -> Option<BTreeSet<String>> {
    let file = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match namespace.run(|| fs::read_to_string(file)).ok()? {
        Ok(names) => Some(names.lines().filter(|name| is_table(name)).map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(BTreeSet::new()),
        Err(_) => None,
    }
}

/// Whether we have rules in this table of iptables.
pub(crate) fn is_table(name: impl AsRef<str>) -> bool {
    ["filter", "nat"].contains(&name.as_ref())
}

pub(crate) fn program_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    }
}
