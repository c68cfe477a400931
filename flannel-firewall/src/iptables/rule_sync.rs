//! Rules in iptables, with as few runs of its programs as possible.
//!
//! What there is to read is read with one run, what there is to write is written with another, and what was written is proved by
//! reading it. Where the kernel says that there is nothing of iptables to read, nothing is run.

use std::collections::{BTreeMap, BTreeSet};

use flannel_netlink::Namespace;
use futures::future::join_all;

use super::{Change, Listing, Program, ProgramError, RunCounter, Wanted, diff, wanted};
use crate::{
    leftovers::{is_table, legacy_tables, program_name, remove_uncommented},
    names::{Name, Names},
    nftables::{ChainInfo, Client, Family as TableFamily},
    options::FirewallOptions,
    outcome::Outcome,
    report::FirewallFault,
    rules::{Family, Rules},
};

/// iptables of both families, as far as they are installed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Iptables {
    programs: BTreeMap<Family, Program>,
    /// What was listed last.
    listings: BTreeMap<Family, Listing>,
}

/// What one family has, and what it should have.
struct FamilyState<'a> {
    family: Family,
    rules: Rules,
    program: &'a Program,
    listing: Listing,
}

impl Iptables {
    /// Looks for it. `variant` is `""` or `"-legacy"`.
    pub(crate) async fn find(
        namespace: &Namespace,
        options: &FirewallOptions,
        variant: &str,
        runs: &RunCounter,
    ) -> Result<Self, ProgramError> {
        let mut programs = BTreeMap::new();
        for family in Family::ALL {
            let folders = &options.tool_folders;
            let found = Program::find(namespace, folders, family, variant, runs).await?;
            programs.extend(found.map(|program| (family, program)));
        }
        Ok(Self { programs, ..Self::default() })
    }

    /// The iptables of one family alone.
    pub(crate) fn with(family: Family, program: Program) -> Self {
        Self { programs: BTreeMap::from([(family, program)]), ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Whether the kernel tells of all changes of its rules.
    pub(crate) fn notifies(&self) -> bool {
        self.programs.values().all(Program::notifies)
    }

    /// Brings the rules of families to what is wanted, all at the same time. `client` says what there is where iptables keeps
    /// its rules in nf_tables.
    pub(crate) async fn sync(
        &mut self,
        families: impl IntoIterator<Item = (Family, Rules)>,
        names: &mut Names,
        mut client: Option<&mut Client>,
        outcome: &mut Outcome,
    ) {
        let asks = self.programs.values().any(Program::notifies);
        let chains = match client.as_deref_mut().filter(|_| asks) {
            Some(client) => client.chains().await.ok(),
            None => None,
        };
        let known: &Names = names;
        let states = families
            .into_iter()
            .map(|(family, rules)| self.observe(family, rules, known, chains.as_deref()));
        let mut states: Vec<_> = join_all(states)
            .await
            .into_iter()
            .filter_map(|(state, partly)| {
                outcome.add(partly);
                state
            })
            .collect();
        for state in &mut states {
            state.restore_readability(names, client.as_deref_mut(), outcome).await;
        }
        let listings: Vec<_> =
            states.iter().map(|state| (state.family, state.listing.clone())).collect();
        let writes = states.into_iter().map(|state| {
            let standard = wanted(Rules::default(), names.standard());
            let placement = names.place(state.family, state.listing.sources(&standard));
            let rules = state.program.able(state.rules);
            let name = placement.wanted.as_ref();
            let mut all: Vec<_> =
                name.into_iter().flat_map(|name| wanted(rules.clone(), name)).collect();
            all.extend(unwanted(&placement.unwanted));
            write(state.family, state.program, state.listing, all)
        });
        let writes: Vec<_> = writes.collect();
        join_all(writes).await.into_iter().for_each(|family| outcome.add(family));
        self.listings.extend(listings);
    }

    /// What there is in one family; `None` if there is nothing to do, or nobody to do it.
    async fn observe<'a>(
        &'a self,
        family: Family,
        rules: Rules,
        names: &Names,
        chains: Option<&[ChainInfo]>,
    ) -> (Option<FamilyState<'a>>, Outcome) {
        let mut outcome = Outcome::default();
        let name = program_name(family);
        let Some(program) = self.programs.get(&family) else {
            if rules != Rules::default() {
                let reason =
                    format!("{name} is not installed; install it, or set EnableNFTables to true");
                let operation = format!("keep the {family} rules");
                outcome.report.faults.push(FirewallFault::new(operation, reason));
            }
            return (None, outcome);
        };
        let there = KernelTables::read(program, family, chains);
        let ours: Vec<_> = unwanted(&names.all(family)).collect();
        if rules == Rules::default() && there.has_nothing(&ours) {
            return (None, outcome);
        }
        let listed = match there.tables {
            Some(tables) if tables.is_empty() => Ok(Listing::default()),
            _ => program.list().await,
        };
        match listed {
            Ok(listing) => (Some(FamilyState { family, rules, program, listing }), outcome),
            Err(error) => {
                outcome.is_unusable |= error.is_lasting();
                outcome.fault(format!("list the rules of {name}"), &error);
                (None, outcome)
            }
        }
    }

    /// Whether rules are not as wanted. Writes nothing.
    pub(crate) async fn differs(
        &mut self,
        family: Family,
        rules: Rules,
        names: &mut Names,
    ) -> bool {
        let Some(program) = self.programs.get(&family) else { return false };
        // Who cannot be asked is asked again by the sync, which says so.
        let Ok(listing) = program.list().await else { return true };
        let standard = wanted(Rules::default(), names.standard());
        let placement = names.place(family, listing.sources(&standard));
        let rules = program.able(rules);
        let differs =
            placement.wanted.iter().flat_map(|name| wanted(rules.clone(), name)).any(|chain| {
                let change = diff(listing.tables.get(chain.table), &chain);
                change.is_some_and(|change| !change.lines.is_empty())
            });
        self.listings.insert(family, listing);
        differs
    }

    /// What was listed last of a family, if it is legacy iptables that keeps the rules.
    pub(crate) fn legacy_listing(&self, family: Family) -> Option<&Listing> {
        let program = self.programs.get(&family)?;
        self.listings.get(&family).filter(|_| !program.notifies())
    }
}

impl FamilyState<'_> {
    /// When an administrator saves all rules with nft and loads them again, copies of ours come back in words that iptables does
    /// not know, and then it cannot read the table. The copies go; the rules stay.
    async fn restore_readability(
        &mut self,
        names: &Names,
        client: Option<&mut Client>,
        outcome: &mut Outcome,
    ) {
        let Some(client) = client.filter(|_| self.listing.unreadable.iter().any(is_table)) else {
            return;
        };
        let operation = format!("remove copies of our rules from {}", program_name(self.family));
        match remove_uncommented(client, self.family, names).await {
            Ok(0) => return,
            Ok(removed) => outcome.wrote(0, removed, vec!["rules of ours were copied".into()]),
            Err(error) => return outcome.fault(operation, &error),
        }
        match self.program.list().await {
            Ok(listing) => self.listing = listing,
            Err(error) => outcome.fault(operation, &error),
        }
    }
}

/// Our chains under these names, without rules.
fn unwanted(names: &[Name]) -> impl Iterator<Item = Wanted> {
    let all = names.iter().flat_map(|name| wanted(Rules::default(), name));
    all.map(|wanted| Wanted { removes_old: false, ..wanted })
}

/// Brings one family to what is wanted.
async fn write(
    family: Family,
    program: &Program,
    listing: Listing,
    wanted: Vec<Wanted>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let name = program_name(family);
    outcome.report.read = listing.count();
    let mut changes = changes(&wanted, &listing, name, &mut outcome);
    if changes.len() > 1 {
        let all: String = changes.iter().map(Change::payload).collect();
        if program.change(all).await.is_ok() {
            changes.into_iter().for_each(|change| outcome.wrote_change(change));
            return outcome;
        }
        // One table that is refused does not cost the other. A part of it may have been done already.
        outcome = Outcome::default();
        match program.list().await {
            Ok(listing) => changes = self::changes(&wanted, &listing, name, &mut outcome),
            Err(error) => outcome.fault(format!("list the rules of {name}"), &error),
        }
    }
    for change in changes {
        match program.change(change.payload()).await {
            Ok(()) => outcome.wrote_change(change),
            Err(error) => {
                outcome.is_unusable |= error.is_lasting();
                outcome.fault(format!("write table {} of {name}", change.table), &error);
            }
        }
    }
    outcome
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
            outcome.is_unusable = true;
            continue;
        }
        let Some(change) = diff(listing.tables.get(table), wanted) else { continue };
        outcome.report.notes.extend(change.blocked.clone());
        changes.extend(Some(change).filter(|change| !change.lines.is_empty()));
    }
    changes
}

/// What the kernel says about the tables of iptables, without any program.
struct KernelTables<'a> {
    /// Those of our two tables that there are; `None` if that is not known.
    tables: Option<BTreeSet<String>>,
    /// The family's chains; `None` if they are not known.
    chains: Option<Vec<&'a ChainInfo>>,
}

impl<'a> KernelTables<'a> {
    fn read(program: &Program, family: Family, chains: Option<&'a [ChainInfo]>) -> Self {
        if !program.notifies() {
            return Self { tables: legacy_tables(program.namespace(), family), chains: None };
        }
        let of_family = |chain: &&ChainInfo| {
            chain.family == TableFamily::from(family) && is_table(&chain.table)
        };
        let chains: Option<Vec<_>> = chains.map(|chains| chains.iter().filter(of_family).collect());
        let tables = chains.as_ref().map(|chains| {
            let tables = chains.iter().map(|chain| chain.table.clone());
            tables.collect()
        });
        Self { tables, chains }
    }

    /// Whether none of these chains is there.
    fn has_nothing(&self, ours: &[Wanted]) -> bool {
        let no_tables = self.tables.as_ref().is_some_and(BTreeSet::is_empty);
        let has = |wanted: &Wanted| {
            let is =
                |chain: &&ChainInfo| (&*chain.table, &chain.name) == (wanted.table, &wanted.chain);
            self.chains.as_ref().is_none_or(|chains| chains.iter().any(is))
        };
        ours.iter().all(|wanted| no_tables || !has(wanted))
    }
}
