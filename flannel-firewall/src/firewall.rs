//! The rules of one node in one namespace, kept as they should be.

use std::collections::{BTreeSet, VecDeque};

use flannel_netlink::Namespace;
use tokio::time::{Duration, Instant, sleep_until};
use tracing::{info, warn};

use crate::{
    error::FirewallError,
    iptables,
    keeper::{self, Iptables, Outcome},
    listener::{Listener, Watched},
    netfilter::Netfilter,
    nftables::WantedTable,
    options::{FirewallOptions, Masquerade, ModeChoice},
    report::{FirewallFault, FirewallMode, FirewallReport},
    rules::{Family, Rules, Scope},
    sysctl,
    tool::Runs,
};

/// The rules of one node. Dropping it leaves them there.
///
/// # Examples
///
/// ```no_run
/// use flannel_core::NetworkConfig;
/// use flannel_firewall::{Firewall, FirewallOptions, Masquerade, Scope};
/// use flannel_netlink::Namespace;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let config: NetworkConfig = r#"{"Network": "10.244.0.0/16"}"#.parse()?;
/// let scope = Scope::new(&config, &"10.244.7.0-24".parse()?);
/// let options = FirewallOptions { masquerade: Masquerade::RandomPorts, ..FirewallOptions::default() };
/// let mut firewall = Firewall::open(&Namespace::current()?, options).await?;
/// loop {
///     for fault in firewall.sync(&scope).await.faults {
///         eprintln!("{fault}");
///     }
///     firewall.drifted().await?;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Firewall {
    namespace: Namespace,
    options: FirewallOptions,
    /// `None` if there is nothing to keep rules in.
    mode: Option<FirewallMode>,
    iptables: Iptables,
    /// How often a program was run since the last report.
    runs: Runs,
    netfilter: Option<Netfilter>,
    listener: Listener,
    /// What was wanted last, and how that went; `None` if the kernel has to be looked at.
    known: Option<(Scope, FirewallReport)>,
    scope: Scope,
    /// Whether there is news that nobody has been told.
    news: bool,
    /// Whether the rules were once as they should be, so that differences are the work of others.
    settled: bool,
    /// Whether what other modes left is gone.
    cleaned: bool,
    /// The families whose flows survive while rules are gone, and those of which the kernel does not allow that.
    guarded: BTreeSet<Family>,
    check_at: Instant,
    repairs: VecDeque<Instant>,
}

impl Firewall {
    /// Finds out who keeps rules in `namespace`, and listens for changes. Writes nothing.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Unsupported`] if packets are to be masqueraded and what is to do that is not there;
    /// [`FirewallError::Kernel`] otherwise.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing.
    pub async fn open(
        namespace: &Namespace,
        options: FirewallOptions,
    ) -> Result<Self, FirewallError> {
        // A kernel without nf_tables says so when it is asked.
        let netfilter = Netfilter::open(namespace)
            .ok()
            .and_then(|mut netfilter| netfilter.chains().is_ok().then_some(netfilter));
        let runs = Runs::default();
        let iptables = match options.mode {
            ModeChoice::Nftables => Iptables::default(),
            ModeChoice::Auto | ModeChoice::Iptables => {
                Iptables::find(namespace, &options, "", &runs).await.map_err(|error| {
                    FirewallError::kernel("find out about iptables")(error.into())
                })?
            }
        };
        let mode = match options.mode {
            ModeChoice::Auto | ModeChoice::Iptables if !iptables.is_empty() => {
                Some(FirewallMode::Iptables)
            }
            ModeChoice::Auto | ModeChoice::Nftables if netfilter.is_some() => {
                Some(FirewallMode::Nftables)
            }
            // Rules that accept do nothing where nothing refuses; without the others pods cannot talk to the outside.
            _ if options.masquerade == Masquerade::Off => None,
            choice => {
                let reason = keeper::remedy(choice).to_owned();
                return Err(FirewallError::Unsupported { reason });
            }
        };
        let watched = match mode {
            Some(mode) if netfilter.is_some() => watched(mode, &options),
            _ => Vec::new(),
        };
        let listener = Listener::open(namespace, watched)
            .map_err(|error| FirewallError::kernel("follow changes of rules")(error.into()))?;
        Ok(Self {
            namespace: namespace.clone(),
            check_at: Instant::now() + options.check_every,
            options,
            mode,
            iptables,
            runs,
            netfilter,
            listener,
            known: None,
            scope: Scope::default(),
            news: false,
            settled: false,
            cleaned: false,
            guarded: BTreeSet::new(),
            repairs: VecDeque::new(),
        })
    }

    /// Who keeps the rules; `None` if nothing can, which a report says if rules are wanted.
    pub const fn mode(&self) -> Option<FirewallMode> {
        self.mode
    }

    /// Makes the rules what the node in `scope` wants, and removes those of ours that it does not want: of another scope, and
    /// of another mode.
    ///
    /// If nobody has touched them since the last sync, nothing is read or written. What cannot be done is in the report.
    ///
    /// # Cancel safety
    ///
    /// If dropped, part of the changes is made; the next sync makes the rest.
    pub async fn sync(&mut self, scope: &Scope) -> FirewallReport {
        self.news = false;
        let heard = self.listener.take();
        if heard.as_ref().is_ok_and(|matters| *matters) {
            self.known = None;
        }
        if let Some((known, report)) = &self.known
            && known == scope
            && heard.is_ok()
        {
            let mut report = report.clone();
            report.runs = self.runs.take();
            return report;
        }
        self.scope = scope.clone();
        self.known = None;
        if !self.may_repair() {
            let mut report = FirewallReport::default();
            report.mode = self.mode;
            let reason = "somebody keeps changing the rules; they wait for their next turn";
            report.faults.push(FirewallFault::new("keep the rules", reason));
            return report;
        }
        let mut all = Outcome::default();
        // A look that finds nothing to write is the proof that what was written is there.
        for _ in 0..LOOKS {
            let mut look = Outcome::default();
            // What was told until now is part of what is looked at.
            if let Err(error) = self.listener.take() {
                look.fault("follow changes of rules", &error);
            }
            self.look(scope, &mut look).await;
            let done = !look.wrote;
            // What one look could not do the next one may have done.
            (all.report.faults, all.report.notes) = (Vec::new(), Vec::new());
            all.add(look);
            if done {
                return self.finish(scope, all);
            }
        }
        let reason =
            format!("they are not there after writing them: {}", all.differences.join(", "));
        all.report.faults.push(FirewallFault::new("keep the rules", reason));
        self.finish(scope, all)
    }

    /// Resolves when the rules may not be what they should be any more, by somebody else's doing.
    ///
    /// Changes in nf_tables, which iptables uses on most systems, are told by the kernel. Legacy iptables is looked at every
    /// [`check_every`](FirewallOptions::check_every), and then this resolves only if something is wrong.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Kernel`] if that can no longer be told; a sync looks then.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn drifted(&mut self) -> Result<(), FirewallError> {
        while !self.news {
            let polled = self.mode == Some(FirewallMode::Iptables) && !self.iptables.notifies();
            let wrong = tokio::select! {
                heard = self.listener.heard() => heard.map(|()| true),
                () = sleep_until(self.check_at), if polled => Ok(false),
            };
            let wrong = match wrong {
                Ok(true) => true,
                Ok(false) => self.check().await,
                Err(error) => {
                    self.known = None;
                    return Err(FirewallError::kernel("follow changes of rules")(error.into()));
                }
            };
            if wrong {
                (self.known, self.news) = (None, true);
            }
        }
        self.news = false;
        Ok(())
    }

    /// Removes all rules of ours, in every mode, and says how many there were. Forwarding stays as it is, for others may need it.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Leftovers`] naming what could not be removed; the rest is removed all the same.
    pub async fn teardown(mut self) -> Result<u64, FirewallError> {
        self.options.forwarding = false;
        let nowhere = Scope::default();
        let mut outcome = Outcome::default();
        self.cleaned = false;
        self.look(&nowhere, &mut outcome).await;
        let mut left: Vec<_> = outcome.report.faults.iter().map(FirewallFault::to_string).collect();
        left.extend(outcome.report.notes);
        if left.is_empty() {
            return Ok(outcome.report.removed);
        }
        Err(FirewallError::Leftovers { what: left.join(", ") })
    }

    /// Looks at everything and writes what differs.
    async fn look(&mut self, scope: &Scope, outcome: &mut Outcome) {
        outcome.report.mode = self.mode;
        let families: Vec<_> =
            Family::ALL.into_iter().filter(|family| scope.blocks(*family).is_some()).collect();
        if self.options.forwarding {
            self.ensure_forwarding(&families, outcome);
        }
        let rules = |family| Rules::new(scope, family, &self.options);
        if self.mode.is_none() && self.options.forward && !families.is_empty() {
            let remedy = keeper::remedy(self.options.mode);
            outcome.report.notes.push(format!("no rules for forwarded packets: {remedy}"));
        }
        if self.mode == Some(FirewallMode::Iptables) {
            let wanted = Family::ALL.map(|family| (family, rules(family)));
            let netfilter = self.netfilter.as_mut();
            self.iptables.sync(wanted, &self.options.name, netfilter, outcome).await;
            outcome.report.notes.extend(
                families.iter().filter_map(|family| sysctl::bridge_note(&self.namespace, *family)),
            );
            outcome.report.notes.dedup();
        }
        let in_tables = self.mode == Some(FirewallMode::Nftables);
        if let Some(netfilter) = self.netfilter.as_mut().filter(|_| in_tables || !self.cleaned) {
            let wanted = Family::ALL.map(|family| {
                let rules = if in_tables { rules(family) } else { Rules::default() };
                WantedTable::new(family, rules, &self.options.name)
            });
            keeper::sync_nftables(netfilter, &wanted, outcome);
            if in_tables && self.options.forward {
                outcome.report.notes.extend(keeper::blockers(netfilter, &families));
            }
        }
        if !self.cleaned {
            self.clean(outcome).await;
        }
        if self.options.masquerade != Masquerade::Off {
            self.guard(&families);
        }
    }

    /// Has flows survive while rules are gone, where the kernel allows it.
    fn guard(&mut self, families: &[Family]) {
        let Some(netfilter) = &mut self.netfilter else { return };
        for family in families {
            if self.guarded.insert(*family)
                && let Err(error) = netfilter.guard(*family, &self.options.name)
            {
                info!(%family, %error, "flows do not survive if rules are flushed; needs Linux 5.12");
            }
        }
    }

    /// Removes what other modes left.
    async fn clean(&mut self, outcome: &mut Outcome) {
        let faults = outcome.report.faults.len();
        let in_iptables = self.mode == Some(FirewallMode::Iptables);
        let in_nf_tables = in_iptables && self.iptables.notifies();
        if let Some(netfilter) = self.netfilter.as_mut().filter(|_| !in_nf_tables) {
            keeper::remove_iptables_nft(netfilter, &self.options.name, outcome);
        }
        if !in_iptables || in_nf_tables {
            keeper::remove_legacy(&self.namespace, &self.options, &self.runs, outcome).await;
        }
        self.cleaned = outcome.report.faults.len() == faults;
    }

    fn ensure_forwarding(&self, families: &[Family], outcome: &mut Outcome) {
        for family in families {
            let done = sysctl::ensure_forwarding(&self.namespace, *family);
            if done.switched_on {
                info!(%family, "forwarding switched on");
                outcome.wrote = true;
            }
            if let Some(note) = done.note {
                warn!("{note}");
            }
            outcome.report.faults.extend(done.fault);
        }
    }

    /// Says what was done, and keeps in mind that nothing has to be looked at until there is news.
    fn finish(&mut self, scope: &Scope, outcome: Outcome) -> FirewallReport {
        let Outcome { mut report, wrote, differences } = outcome;
        report.mode = self.mode;
        report.runs = self.runs.take();
        if !self.settled {
            report.drifted = 0;
            if wrote {
                let FirewallReport { added, removed, .. } = report;
                info!(mode = ?self.mode, added, removed, "firewall written");
            }
        } else if wrote {
            self.repairs.push_back(Instant::now());
            for difference in differences.iter().take(LOGGED_DIFFERENCES) {
                warn!("firewall changed by others: {difference}");
            }
            if differences.len() > LOGGED_DIFFERENCES {
                warn!("and {} more", differences.len() - LOGGED_DIFFERENCES);
            }
        }
        if report.is_exact() {
            self.settled = true;
            let mut quiet = FirewallReport::default();
            (quiet.mode, quiet.notes) = (report.mode, report.notes.clone());
            self.known = Some((scope.clone(), quiet));
        }
        self.check_at = Instant::now() + self.options.check_every;
        report
    }

    /// Whether legacy rules are not as they should be.
    async fn check(&mut self) -> bool {
        for family in Family::ALL.into_iter().filter(|f| self.scope.blocks(*f).is_some()) {
            let rules = Rules::new(&self.scope, family, &self.options);
            if self.iptables.differs(family, rules, &self.options.name).await {
                return true;
            }
        }
        self.check_at = Instant::now() + self.options.check_every;
        false
    }

    /// Two programs that repair each other's work would never rest.
    fn may_repair(&mut self) -> bool {
        let now = Instant::now();
        while self.repairs.front().is_some_and(|at| now.duration_since(*at) > REPAIR_WINDOW) {
            self.repairs.pop_front();
        }
        self.repairs.len() < REPAIRS
    }
}

fn watched(mode: FirewallMode, options: &FirewallOptions) -> Vec<Watched> {
    let mut watched = Vec::new();
    for family in Family::ALL {
        let protocol = family.protocol();
        match mode {
            FirewallMode::Nftables => {
                let table = WantedTable::new(family, Rules::default(), &options.name).name;
                watched.push(Watched { family: protocol, table, chains: vec![] });
            }
            _ => watched.extend(iptables::wanted(Rules::default(), &options.name).map(|wanted| {
                let chains = vec![wanted.hook.to_owned(), wanted.chain];
                Watched { family: protocol, table: wanted.table.into(), chains }
            })),
        }
    }
    watched
}

/// How often a sync looks: once to write, once to see that it is there, and once more for somebody who was faster.
const LOOKS: usize = 3;
/// How many differences are named at once: who flushes a table removes many.
const LOGGED_DIFFERENCES: usize = 5;
/// How many repairs there may be within [`REPAIR_WINDOW`]. Who reloads all rules needs one.
const REPAIRS: usize = 10;
const REPAIR_WINDOW: Duration = Duration::from_secs(10);
