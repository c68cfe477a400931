//! Rules of others that keep the network's packets from being forwarded, told without anybody asking about a packet.
//!
//! They are looked for when rules have changed, but not all the time: where others change theirs every moment, looking takes a small
//! part of one processor's time at most.

use flannel_netlink::Namespace;
use tokio::time::{Duration, Instant};

use crate::{
    iptables::Iptables,
    leftovers::legacy_tables,
    nftables::Client,
    options::FirewallOptions,
    rules::{Family, Scope},
};

/// Where rules are read from.
#[cfg_attr(not(feature = "inspect"), expect(dead_code, reason = "nobody looks"))]
pub(crate) struct RuleSources<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) client: Option<&'a mut Client>,
    /// Has just listed legacy iptables, if that keeps our rules.
    pub(crate) iptables: &'a Iptables,
    pub(crate) options: &'a FirewallOptions,
}

/// What was found last, and when to look again.
#[derive(Debug)]
pub(crate) struct Warnings {
    texts: Vec<String>,
    due: Option<Instant>,
    not_before: Instant,
}

impl Default for Warnings {
    fn default() -> Self {
        let now = Instant::now();
        // Without the feature nothing is ever due.
        Self { texts: Vec::new(), due: cfg!(feature = "inspect").then_some(now), not_before: now }
    }
}

impl Warnings {
    /// What was found, in words.
    pub(crate) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// When to look; `None` if nothing has changed.
    pub(crate) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Somebody has changed rules.
    pub(crate) fn rules_changed(&mut self) {
        if cfg!(feature = "inspect") && self.due.is_none_or(|due| due > self.not_before) {
            self.due = Some(self.not_before.max(Instant::now()));
        }
    }

    /// Looks, and says whether something else was found than before.
    pub(crate) async fn evaluate(&mut self, sources: RuleSources<'_>, scope: &Scope) -> bool {
        let began = Instant::now();
        // Nobody tells of changes in legacy iptables.
        let has_legacy = Family::ALL.into_iter().any(|family| {
            sources.iptables.legacy_listing(family).is_none()
                && legacy_tables(sources.namespace, family).is_some_and(|it| !it.is_empty())
        });
        let found = find(sources, scope).await;
        let took = began.elapsed();
        self.not_before = Instant::now() + SHORTEST_PAUSE.max(took * PAUSE_PER_LOOK);
        self.due = (cfg!(feature = "inspect") && has_legacy)
            .then(|| self.not_before.max(began + LEGACY_PAUSE));
        // What cannot be read now says nothing about before.
        let Some(found) = found else { return false };
        let is_news = found != self.texts;
        if is_news {
            found
                .iter()
                .filter(|text| !self.texts.contains(text))
                .for_each(|text| tracing::warn!("{text}"));
            if found.is_empty() {
                tracing::info!("no rule of others is known to drop the network's packets any more");
            }
        }
        self.texts = found;
        is_news
    }
}

#[cfg(not(feature = "inspect"))]
async fn find(_: RuleSources<'_>, _: &Scope) -> Option<Vec<String>> {
    None
}

#[cfg(feature = "inspect")]
use crate::inspect::find_blockers as find;

/// How long to wait at least before looking again.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// How many times longer than a look took to wait before the next.
const PAUSE_PER_LOOK: u32 = 30;
/// How often to look where nobody tells of changes.
const LEGACY_PAUSE: Duration = Duration::from_secs(60);
