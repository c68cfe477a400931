//! One look at everything, which writes what differs.

use tracing::{debug, info, warn};

use super::Firewall;
use crate::{
    changes::Watched,
    iptables,
    leftovers::{remove_iptables_nft, remove_legacy},
    nftables::Family as TableFamily,
    options::{Masquerade, ModeChoice},
    outcome::Outcome,
    report::{FirewallFault, FirewallMode},
    rules::{Family, Rules, Scope},
    sysctl, tables,
};

impl Firewall {
    /// Looks until there is nothing to write: that is the proof that what was written is there.
    pub(super) async fn reconcile(&mut self, scope: &Scope) -> Outcome {
        let mut all = Outcome::default();
        for _ in 0..ATTEMPTS {
            let mut look = Outcome::default();
            // What was told until now is part of what is looked at.
            match self.listener.take() {
                Ok(changed) if changed.others => self.warnings.rules_changed(),
                Ok(_) => {}
                Err(error) => look.fault("follow changes of rules", &error),
            }
            self.reconcile_once(scope, &mut look).await;
            let done = !look.wrote;
            // What one look could not do the next one may have done.
            (all.report.faults, all.report.notes) = (Vec::new(), Vec::new());
            (all.is_unusable, all.has_leftovers) = (false, false);
            all.add(look);
            if done {
                return all;
            }
        }
        let reason =
            format!("they are not there after writing them: {}", all.differences.join(", "));
        all.report.faults.push(FirewallFault::new("keep the rules", reason));
        all
    }

    /// Looks at everything and writes what differs. What is wanted is there before anything is removed.
    pub(super) async fn reconcile_once(&mut self, scope: &Scope, outcome: &mut Outcome) {
        let families: Vec<_> =
            Family::ALL.into_iter().filter(|family| scope.blocks(*family).is_some()).collect();
        if self.options.forwarding {
            self.ensure_forwarding(&families, outcome);
        }
        let wanted = Family::ALL.map(|family| (family, Rules::new(scope, family, &self.options)));
        match self.mode {
            Some(FirewallMode::Iptables) => {
                let client = self.client.as_mut();
                self.iptables.sync(wanted, &mut self.names, client, outcome).await;
                outcome.report.notes.extend(
                    families
                        .iter()
                        .filter_map(|family| sysctl::bridge_note(&self.namespace, *family)),
                );
                outcome.report.notes.dedup();
            }
            Some(_) => {
                if self.options.mode == ModeChoice::Iptables {
                    let remedy = self.options.mode.remedy();
                    outcome.report.notes.push(format!("rules are kept in nftables: {remedy}"));
                }
                if let Some(client) = &mut self.client {
                    let exact = self.in_flannels_words;
                    let wanted = wanted.map(|(family, rules)| match exact {
                        true => (family, rules.in_flannels_words(scope, family)),
                        false => (family, rules),
                    });
                    tables::sync(client, &mut self.names, wanted, exact, outcome).await;
                }
            }
            None if self.options.forward && !families.is_empty() => {
                let remedy = self.options.mode.remedy();
                outcome.report.notes.push(format!("no rules for forwarded packets: {remedy}"));
            }
            None => {}
        }
        // Where nothing is wanted, nothing has to be there first.
        if !self.cleaned && (families.is_empty() || outcome.report.faults.is_empty()) {
            let mut clean = Outcome::default();
            self.clean(&mut clean).await;
            self.cleaned = !clean.has_leftovers;
            outcome.add(clean);
        }
        if self.options.masquerade != Masquerade::Off {
            self.keep_tracking(&families).await;
        }
    }

    /// Has flows survive while rules are gone, where the kernel allows it.
    async fn keep_tracking(&mut self, families: &[Family]) {
        let Some(client) = &mut self.client else { return };
        for family in families {
            if self.guarded.contains(family) {
                continue;
            }
            match tables::keep_tracking(client, *family, &self.options.name).await {
                // It may be in a moment.
                Err(error) if error.outcome_unknown() => {
                    debug!(%family, %error, "cannot keep tracking flows")
                }
                Err(error) => {
                    info!(%family, %error, "flows do not survive if rules are flushed; needs Linux 5.12");
                    self.guarded.insert(*family);
                }
                Ok(()) => drop(self.guarded.insert(*family)),
            }
        }
    }

    /// Removes what other modes left.
    async fn clean(&mut self, outcome: &mut Outcome) {
        // What the names are elsewhere says nothing about where the rules are now.
        let mut names = self.names.clone();
        let in_iptables = self.mode == Some(FirewallMode::Iptables);
        let in_nf_tables = in_iptables && self.iptables.notifies();
        if let Some(client) = &mut self.client {
            if self.mode != Some(FirewallMode::Nftables) {
                let nothing = Family::ALL.map(|family| (family, Rules::default()));
                let mut tables = Outcome::default();
                tables::sync(client, &mut names, nothing, false, &mut tables).await;
                tables.downgrade_faults();
                outcome.add(tables);
            }
            if !in_nf_tables {
                remove_iptables_nft(client, &names, outcome).await;
            }
        }
        if !in_iptables || in_nf_tables {
            let Self { namespace, options, runs, .. } = self;
            remove_legacy(namespace, options, &mut names, runs, outcome).await;
        }
    }

    /// Has something else keep the rules if what keeps them cannot, and if nobody has said that it must.
    pub(super) fn change_mode(&mut self, outcome: &Outcome) -> bool {
        self.failures = if outcome.report.is_exact() { 0 } else { self.failures + 1 };
        let is_lasting = outcome.is_unusable || self.failures >= FAILURES;
        if self.failures == 0 || self.options.mode != ModeChoice::Auto || !is_lasting {
            return false;
        }
        let next = match self.mode {
            Some(FirewallMode::Iptables) if self.client.is_some() => FirewallMode::Nftables,
            Some(FirewallMode::Nftables) if !self.iptables.is_empty() => FirewallMode::Iptables,
            _ => return false,
        };
        let reason = outcome.report.faults.first().map(ToString::to_string).unwrap_or_default();
        warn!(from = ?self.mode, to = ?next, reason, "the rules are kept by something else from now on");
        (self.mode, self.failures, self.cleaned) = (Some(next), 0, false);
        self.listener.watched = self.watched();
        true
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

    /// What changes are about our rules.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let mut watched = Vec::new();
        for family in Family::ALL {
            let of = TableFamily::from(family);
            for name in self.names.all(family) {
                match self.mode {
                    Some(FirewallMode::Nftables) => watched.push(Watched {
                        family: of,
                        table: name.table(family),
                        chains: vec![],
                    }),
                    Some(_) if self.iptables.notifies() => {
                        watched.extend(iptables::wanted(Rules::default(), &name).map(|wanted| {
                            let chains = vec![wanted.hook.to_owned(), wanted.chain];
                            Watched { family: of, table: wanted.table.into(), chains }
                        }));
                    }
                    _ => {}
                }
            }
        }
        watched
    }
}

/// How often a sync looks: once to write, once to see that it is there, and once more for somebody who was faster.
const ATTEMPTS: usize = 3;
/// After how many syncs that could not keep the rules something else is tried.
const FAILURES: u32 = 3;
