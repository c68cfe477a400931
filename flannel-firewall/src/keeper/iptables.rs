//! Rules in iptables, with as few runs of its programs as possible.
//!
//! What there is to read is read with one run, what there is to write is written with another, and what was written is proved by
//! reading it. Where the kernel says that there is nothing of iptables to read, nothing is run.

use std::collections::{BTreeMap, BTreeSet};

use flannel_netlink::Namespace;
use futures::future::join_all;

use super::{Outcome, is_table, legacy_tables, program};
use crate::{
    iptables::{self, Change, Listing, Wanted},
    netfilter::Netfilter,
    nftables::PlacedChain,
    options::{FirewallOptions, Name},
    report::FirewallFault,
    rules::{Family, Rules},
    tool::{Runs, Tool, ToolError},
};

/// iptables of both families, as far as they are installed.
#[derive(Debug, Default)]
pub(crate) struct Iptables {
    tools: BTreeMap<Family, Tool>,
}

impl Iptables {
    /// Looks for it. `variant` is `""` or `"-legacy"`.
    pub(crate) async fn find(
        namespace: &Namespace,
        options: &FirewallOptions,
        variant: &str,
        runs: &Runs,
    ) -> Result<Self, ToolError> {
        let mut tools = BTreeMap::new();
        for family in Family::ALL {
            let folders = &options.tool_folders;
            let found = Tool::find(namespace, folders, family, variant, runs).await?;
            tools.extend(found.map(|tool| (family, tool)));
        }
        Ok(Self { tools })
    }

    /// The iptables of one family alone.
    pub(crate) fn with(family: Family, tool: Tool) -> Self {
        Self { tools: BTreeMap::from([(family, tool)]) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// Whether the kernel tells of all changes of its rules.
    pub(crate) fn notifies(&self) -> bool {
        self.tools.values().all(Tool::notifies)
    }

    /// Brings the rules of families to what is wanted, all at the same time. `netfilter` says what there is where iptables keeps
    /// its rules in nf_tables.
    pub(crate) async fn sync(
        &self,
        wanted: impl IntoIterator<Item = (Family, Rules)>,
        name: &Name,
        netfilter: Option<&mut Netfilter>,
        outcome: &mut Outcome,
    ) {
        let asks = self.tools.values().any(Tool::notifies);
        let chains = netfilter.filter(|_| asks).and_then(|netfilter| netfilter.chains().ok());
        let families = wanted
            .into_iter()
            .map(|(family, rules)| self.sync_family(family, rules, name, chains.as_deref()));
        let outcomes = join_all(families).await;
        outcomes.into_iter().for_each(|family| outcome.add(family));
    }

    async fn sync_family(
        &self,
        family: Family,
        rules: Rules,
        name: &Name,
        chains: Option<&[PlacedChain]>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let program = program(family);
        let Some(tool) = self.tools.get(&family) else {
            if rules != Rules::default() {
                let reason = format!(
                    "{program} is not installed; install it, or set EnableNFTables to true"
                );
                let operation = format!("keep the {family} rules");
                outcome.report.faults.push(FirewallFault::new(operation, reason));
            }
            return outcome;
        };
        let wanted = iptables::wanted(tool.able(rules), name);
        let there = There::look(tool, family, chains);
        if there.is_nothing(&wanted) {
            return outcome;
        }
        let listed = match there.tables {
            Some(tables) if tables.is_empty() => Ok(Listing::default()),
            _ => tool.list().await,
        };
        let cannot_list = format!("list the rules of {program}");
        let listing = match listed {
            Ok(listing) => listing,
            Err(error) => {
                outcome.fault(cannot_list, &error);
                return outcome;
            }
        };
        outcome.report.read = listing.count();
        let mut changes = changes(&wanted, &listing, program, &mut outcome);
        if changes.len() > 1 {
            let all: String = changes.iter().map(Change::payload).collect();
            if tool.change(all).await.is_ok() {
                changes.into_iter().for_each(|change| outcome.wrote_change(change));
                return outcome;
            }
            // One table that is refused does not cost the other. A part of it may have been done already.
            outcome = Outcome::default();
            match tool.list().await {
                Ok(listing) => changes = self::changes(&wanted, &listing, program, &mut outcome),
                Err(error) => outcome.fault(cannot_list, &error),
            }
        }
        for change in changes {
            match tool.change(change.payload()).await {
                Ok(()) => outcome.wrote_change(change),
                Err(error) => {
                    outcome.fault(format!("write table {} of {program}", change.table), &error);
                }
            }
        }
        outcome
    }

    /// Whether rules are not as wanted. Writes nothing.
    pub(crate) async fn differs(&self, family: Family, rules: Rules, name: &Name) -> bool {
        let Some(tool) = self.tools.get(&family) else { return false };
        // Who cannot be asked is asked again by the sync, which says so.
        let Ok(listing) = tool.list().await else { return true };
        iptables::wanted(tool.able(rules), name).iter().any(|wanted| {
            let change = iptables::diff(listing.tables.get(wanted.table), wanted);
            change.is_some_and(|change| !change.lines.is_empty())
        })
    }
}

impl Outcome {
    fn wrote_change(&mut self, change: Change) {
        self.wrote(change.added, change.removed, change.differences);
    }
}

/// What has to be written to the tables of one family. What has to wait is in the outcome.
fn changes(
    wanted: &[Wanted],
    listing: &Listing,
    program: &str,
    outcome: &mut Outcome,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for wanted in wanted {
        let table = wanted.table;
        if !wanted.rules.is_empty() && listing.unreadable.iter().any(|name| name == table) {
            let operation = format!("read table {table} of {program}");
            let reason =
                "it has rules that only nft can read; remove those, or set EnableNFTables to true";
            outcome.report.faults.push(FirewallFault::new(operation, reason));
            continue;
        }
        let Some(change) = iptables::diff(listing.tables.get(table), wanted) else { continue };
        outcome.report.notes.extend(change.blocked.clone());
        changes.extend(Some(change).filter(|change| !change.lines.is_empty()));
    }
    changes
}

/// What the kernel says about the tables of iptables, without any program.
struct There<'a> {
    /// Those of our two tables that there are; `None` if that is not known.
    tables: Option<BTreeSet<String>>,
    /// The family's chains; `None` if they are not known.
    chains: Option<Vec<&'a PlacedChain>>,
}

impl<'a> There<'a> {
    fn look(tool: &Tool, family: Family, chains: Option<&'a [PlacedChain]>) -> Self {
        if !tool.notifies() {
            return Self { tables: legacy_tables(tool.namespace(), family), chains: None };
        }
        let of_family = |chain: &&PlacedChain| {
            chain.family == family.protocol() && is_table(&chain.table.as_str())
        };
        let chains: Option<Vec<_>> = chains.map(|chains| chains.iter().filter(of_family).collect());
        let tables = chains.as_ref().map(|chains| {
            let tables = chains.iter().map(|chain| chain.table.clone());
            tables.collect()
        });
        Self { tables, chains }
    }

    /// Whether nothing is wanted and nothing of ours is there.
    fn is_nothing(&self, wanted: &[Wanted]) -> bool {
        let no_tables = self.tables.as_ref().is_some_and(BTreeSet::is_empty);
        let has = |wanted: &Wanted| {
            let is = |chain: &&PlacedChain| {
                (&*chain.table, &chain.name) == (wanted.table, &wanted.chain)
            };
            self.chains.as_ref().is_none_or(|chains| chains.iter().any(is))
        };
        wanted.iter().all(|wanted| wanted.rules.is_empty() && (no_tables || !has(wanted)))
    }
}
