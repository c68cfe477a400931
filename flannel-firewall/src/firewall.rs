//! The rules of one node in one namespace, kept as they should be.

mod reconcile;

use std::collections::{BTreeSet, VecDeque};

use flannel_core::error_chain;
use flannel_netlink::{LogLimit, Namespace};
use tokio::time::{Duration, Instant, sleep_until};
use tracing::{info, warn};

use crate::{
    changes::ChangeListener,
    error::FirewallError,
    iptables::{Iptables, RunCounter},
    names::Names,
    nftables::Client,
    options::{FirewallOptions, Masquerade, ModeChoice},
    outcome::Outcome,
    report::{FirewallFault, FirewallMode, FirewallReport},
    rules::{Family, Rules, Scope},
    warnings::{RuleSources, Warnings},
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
    runs: RunCounter,
    /// `None` if the kernel has no nf_tables, or lets nobody use it.
    client: Option<Client>,
    names: Names,
    listener: ChangeListener,
    /// What was wanted last, and how that went; `None` if the kernel has to be looked at.
    known: Option<(Scope, FirewallReport)>,
    scope: Scope,
    /// Whether there is news that nobody has been told.
    news: bool,
    /// Whether the rules were once as they should be, so that differences are the work of others.
    settled: bool,
    /// What of others' changes is logged.
    log: LogLimit,
    /// Whether what other modes left is gone.
    cleaned: bool,
    /// When to try again to remove what could not be removed.
    clean_at: Option<Instant>,
    /// The families whose flows survive while rules are gone, and those of which the kernel does not allow that.
    guarded: BTreeSet<Family>,
    check_at: Instant,
    repairs: VecDeque<Instant>,
    /// How many syncs in a row could not keep the rules.
    failures: u32,
    /// Whether rules in nftables are those of flanneld.
    in_flannels_words: bool,
    warnings: Warnings,
}

impl Firewall {
    /// Finds out who keeps rules in `namespace`, and listens for changes. Writes nothing.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Unsupported`] if packets are to be masqueraded or to be dropped and what is to do that is not there;
    /// [`FirewallError::Kernel`] otherwise.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing.
    pub async fn open(
        namespace: &Namespace,
        options: FirewallOptions,
    ) -> Result<Self, FirewallError> {
        let mut client = Client::open(namespace).ok();
        if let Some(asked) = &mut client
            && asked.chains().await.is_err()
        {
            client = None;
        }
        let runs = RunCounter::default();
        let iptables = match options.mode {
            ModeChoice::Nftables => Iptables::default(),
            ModeChoice::Auto | ModeChoice::Iptables => {
                match Iptables::find(namespace, &options, "", &runs).await {
                    Ok(iptables) => iptables,
                    // Who has a choice is not kept from starting by what is not needed.
                    Err(error) if options.mode == ModeChoice::Auto && client.is_some() => {
                        let error = error_chain(&error);
                        warn!(%error, "iptables does not say what it is, so nftables keeps the rules");
                        Iptables::default()
                    }
                    Err(error) => {
                        return Err(FirewallError::kernel("find out about iptables")(error.into()));
                    }
                }
            }
        };
        let mode = match options.mode {
            ModeChoice::Auto | ModeChoice::Iptables if !iptables.is_empty() => {
                Some(FirewallMode::Iptables)
            }
            // Also for who asks for iptables and has none: the same rules, and no program is there whose rules could matter more.
            _ if client.is_some() => Some(FirewallMode::Nftables),
            // Rules that accept do nothing where nothing refuses; without masquerading pods cannot talk to the outside, and without rules
            // that drop they could talk in the clear.
            _ if options.masquerade == Masquerade::Off && options.tunnels.is_empty() => None,
            choice => {
                let reason = choice.remedy().to_owned();
                return Err(FirewallError::Unsupported { reason });
            }
        };
        let listener = ChangeListener::open(namespace, client.is_some())
            .map_err(|error| FirewallError::kernel("follow changes of rules")(error.into()))?;
        Ok(Self {
            namespace: namespace.clone(),
            check_at: Instant::now() + options.check_every,
            names: Names::new(options.name.clone(), &options.networks),
            options,
            mode,
            iptables,
            runs,
            client,
            listener,
            known: None,
            scope: Scope::default(),
            news: false,
            settled: false,
            log: LogLimit::default(),
            cleaned: false,
            clean_at: None,
            guarded: BTreeSet::new(),
            repairs: VecDeque::new(),
            failures: 0,
            in_flannels_words: false,
            warnings: Warnings::default(),
        })
    }

    /// Who keeps the rules; `None` if nothing can, which a report says if rules are wanted.
    pub const fn mode(&self) -> Option<FirewallMode> {
        self.mode
    }

    /// Makes the rules what the node in `scope` wants, and removes those of ours that it does not want: of another scope, and
    /// of another mode.
    ///
    /// If nobody has touched them since the last sync, nothing is read or written. What cannot be done is in the report, and so
    /// are rules of others that keep the network's packets from being forwarded (feature `inspect`).
    ///
    /// # Cancel safety
    ///
    /// If dropped, part of the changes is made; the next sync makes the rest.
    pub async fn sync(&mut self, scope: &Scope) -> FirewallReport {
        self.news = false;
        self.names.enter(scope);
        self.listener.watched = self.watched();
        let heard = self.listener.take();
        let changed = heard.as_ref().copied().unwrap_or_default();
        if changed.others {
            self.warnings.rules_changed();
        }
        if changed.ours {
            self.known = None;
        }
        if let Some((known, report)) = &self.known
            && known == scope
            && heard.is_ok()
        {
            let report = report.clone();
            return self.completed(report).await;
        }
        self.scope = scope.clone();
        self.known = None;
        if !self.may_repair() {
            let mut report = FirewallReport::default();
            let reason = "somebody keeps changing the rules; they wait for their next turn";
            report.faults.push(FirewallFault::new("keep the rules", reason));
            return self.completed(report).await;
        }
        let mut outcome = self.reconcile(scope).await;
        if self.change_mode(&outcome) {
            outcome = self.reconcile(scope).await;
        }
        let report = self.finish(scope, outcome);
        self.completed(report).await
    }

    /// Resolves when the rules may not be what they should be any more, by somebody else's doing, and when rules of others begin or
    /// cease to be in the way.
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
            let changed = match self.listener.take() {
                Ok(changed) => changed,
                Err(error) => {
                    self.known = None;
                    return Err(FirewallError::kernel("follow changes of rules")(error.into()));
                }
            };
            if changed.others {
                self.warnings.rules_changed();
            }
            let now = Instant::now();
            let polled = self.mode == Some(FirewallMode::Iptables) && !self.iptables.notifies();
            let wrong = changed.ours
                || self.clean_at.is_some_and(|at| at <= now)
                || polled && self.check_at <= now && self.check().await;
            if wrong {
                (self.known, self.news) = (None, true);
            } else if self.warnings.due().is_some_and(|at| at <= now) && self.evaluate().await {
                self.news = true;
            }
            if self.news {
                break;
            }
            let check_at = polled.then_some(self.check_at);
            let next = [check_at, self.clean_at, self.warnings.due()].into_iter().flatten().min();
            let wait = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = self.listener.readable() => ready
                    .map_err(|error| FirewallError::kernel("follow changes of rules")(error.into()))?,
                () = wait => {}
            }
        }
        self.news = false;
        Ok(())
    }

    /// Removes all rules of ours, in every mode, and says how many there were. Forwarding stays as it is, for others may need it.
    ///
    /// Ours are those of the networks that were synced or are in [`networks`](FirewallOptions::networks); if there are none, all that
    /// have our name.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Leftovers`] naming what could not be removed; the rest is removed all the same.
    pub async fn teardown(mut self) -> Result<u64, FirewallError> {
        self.options.forwarding = false;
        let nowhere = Scope::default();
        self.names.enter(&nowhere);
        self.cleaned = false;
        let mut outcome = Outcome::default();
        self.reconcile_once(&nowhere, &mut outcome).await;
        let mut left: Vec<_> = outcome.report.faults.iter().map(FirewallFault::to_string).collect();
        left.extend(outcome.report.notes);
        if left.is_empty() {
            return Ok(outcome.report.removed);
        }
        Err(FirewallError::Leftovers { what: left.join(", ") })
    }

    /// Leaves the rules of the node in `scope` as flanneld would have made them, in the mode that they are kept in: then a flanneld
    /// that is started finds its own. No packet is lost.
    ///
    /// In iptables they differ from ours only by [`keep_source`](FirewallOptions::keep_source), in nftables by flannel's own order of
    /// what is not masqueraded.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Leftovers`] naming what could not be written or removed.
    pub async fn hand_over(mut self, scope: &Scope) -> Result<(), FirewallError> {
        self.options.keep_source.clear();
        self.options.tunnels.clear();
        self.in_flannels_words = true;
        self.known = None;
        let report = self.sync(scope).await;
        let mut left: Vec<_> = report.faults.iter().map(FirewallFault::to_string).collect();
        if self.names.are_taken() {
            left.push(format!(
                "another network has the chains and tables named {}",
                self.options.name
            ));
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(FirewallError::Leftovers { what: left.join(", ") })
    }

    /// Completes a report by what does not depend on our own rules.
    async fn completed(&mut self, mut report: FirewallReport) -> FirewallReport {
        if self.warnings.due().is_some_and(|at| at <= Instant::now()) {
            self.evaluate().await;
        }
        report.mode = self.mode;
        report.runs = self.runs.take();
        report.notes.extend(self.warnings.texts().iter().cloned());
        report
    }

    /// Looks for rules of others that are in the way, and says whether that is news.
    async fn evaluate(&mut self) -> bool {
        let Self { warnings, namespace, client, iptables, scope, options, .. } = self;
        let rules = RuleSources { namespace, client: client.as_mut(), iptables, options };
        warnings.evaluate(rules, scope).await
    }

    /// Says what was done, and keeps in mind that nothing has to be looked at until there is news.
    fn finish(&mut self, scope: &Scope, outcome: Outcome) -> FirewallReport {
        let Outcome { mut report, wrote, differences, has_leftovers, .. } = outcome;
        if !self.settled {
            report.drifted = 0;
            if wrote {
                let FirewallReport { added, removed, .. } = report;
                info!(mode = ?self.mode, added, removed, "firewall written");
            }
        } else if wrote {
            self.repairs.push_back(Instant::now());
            for (difference, left_out) in self.log.choose(&differences, Instant::now()) {
                let left_out = Some(left_out).filter(|left_out| *left_out > 0);
                warn!(left_out, "firewall changed by others: {difference}");
            }
        }
        if report.is_exact() {
            self.settled = true;
            let mut quiet = FirewallReport::default();
            quiet.notes.clone_from(&report.notes);
            self.known = Some((scope.clone(), quiet));
        }
        let now = Instant::now();
        self.clean_at = has_leftovers.then(|| now + CLEAN_AGAIN);
        self.check_at = now + self.options.check_every;
        report
    }

    /// Whether legacy rules are not as they should be.
    async fn check(&mut self) -> bool {
        for family in Family::ALL.into_iter().filter(|f| self.scope.blocks(*f).is_some()) {
            let rules = Rules::new(&self.scope, family, &self.options);
            let before = self.iptables.legacy_listing(family).cloned();
            if self.iptables.differs(family, rules, &mut self.names).await {
                return true;
            }
            if self.iptables.legacy_listing(family) != before.as_ref() {
                self.warnings.rules_changed();
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

/// How many repairs there may be within [`REPAIR_WINDOW`]. Who reloads all rules needs one.
const REPAIRS: usize = 10;
const REPAIR_WINDOW: Duration = Duration::from_secs(10);
/// How long to wait before trying again to remove what is in nobody's way.
const CLEAN_AGAIN: Duration = Duration::from_secs(30);
