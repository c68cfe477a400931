//! What a node shows of itself.

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    fmt,
};

use serde::Serialize;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    lease::Lease,
    report::{FirewallReport, PeerProblem, SyncReport},
};

/// A node at one moment.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The lease that this node holds as far as it knows; `None` before the first and after a lost one. Whether it may be trusted
    /// says [`trusts_lease`](Self::trusts_lease).
    pub lease: Option<Lease>,
    /// Until when the lease can be trusted without another renewal; `None` if it does not expire, and without a lease. Renewals
    /// alone are not told to those who wait for a change.
    #[serde(skip)]
    pub trusted_until: Option<Instant>,
    /// The largest packet that a pod may send, in bytes; `None` until the data path is up.
    pub mtu: Option<u32>,
    /// How many peers there are; `None` until the store's first snapshot.
    pub peers: Option<usize>,
    /// Leases that are not followed because they would harm this node.
    pub refused: Vec<PeerProblem>,
    /// What the last sync did; `None` until the first one.
    pub last_sync: Option<SyncReport>,
    /// How many syncs there were.
    pub syncs: u64,
    /// How many objects all syncs have written.
    pub writes: u64,
    /// What all syncs together have read and written, by kind of write.
    pub totals: Totals,
    /// How many changes by others were found and undone, by kind of object; `chain` stands for chains of the firewall.
    pub repaired: BTreeMap<&'static str, u64>,
    /// The latest of these changes, oldest first, at most 32. Their numbers go up without gaps.
    pub repairs: VecDeque<Repair>,
    /// Whether the data path matched all peers, and the firewall its rules, when it was last looked at.
    pub in_sync: bool,
    /// What does not work right now, and why; retried until it does.
    pub faults: BTreeMap<Activity, String>,
    /// The latest fault, kept after it is over.
    pub last_error: Option<String>,
    /// Whether the node has run and does not any more: the rest is what was true then.
    pub ended: bool,
}

/// What all syncs of a node did, in objects.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Listed.
    pub read: u64,
    /// Not there before.
    pub added: u64,
    /// There with other values before.
    pub replaced: u64,
    /// Of ours, and needed by nobody any more.
    pub removed: u64,
    /// Rules of the firewall that were not there, or not in their place.
    pub rules_added: u64,
    /// Rules of the firewall in a wrong place, or needed by nobody any more.
    pub rules_removed: u64,
    /// Programs that were run for the firewall.
    pub program_runs: u64,
}

/// A change by somebody else that a sync has undone.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Repair {
    /// Its number, from 0 on.
    pub number: u64,
    /// What was changed, how, and by whom if the kernel says so.
    pub what: String,
}

/// What a node was doing when something failed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Taking a subnet.
    Acquire,
    /// Finding out what to publish.
    Advertise,
    /// Reading the network's configuration.
    Config,
    /// Holding the lease without a doubt: it was not renewed for so long that somebody else may have the subnet.
    Hold,
    /// Keeping the lease.
    Renew,
    /// Bringing up our own end of the data path.
    Start,
    /// Making the data path match the peers.
    Sync,
    /// Following the leases of others.
    Watch,
}

impl Status {
    /// Whether pods can be served: the node runs, its lease is held and can be trusted, the peers are known, and the data path
    /// matches them.
    ///
    /// A peer whose own data is bad does not count against it.
    pub fn is_ready(&self) -> bool {
        !self.ended && self.trusts_lease() && self.peers.is_some() && self.in_sync
    }

    /// Whether the lease is held and cannot be somebody else's; [`Store`](crate::Store) says on which conditions.
    ///
    /// It can be after a whole TTL without a renewal. The data path stays then, and a renewal ends the doubt.
    pub fn trusts_lease(&self) -> bool {
        self.lease.is_some() && !self.faults.contains_key(&Activity::Hold)
    }

    /// Adds up what a sync did.
    pub(super) fn count(&mut self, report: &SyncReport) {
        self.totals.read += report.read;
        self.totals.added += report.added;
        self.totals.replaced += report.replaced;
        self.totals.removed += report.removed;
        for (kind, count) in &report.repaired.by_kind {
            *self.repaired.entry(kind).or_default() += count;
        }
        if let Some(firewall) = &report.firewall {
            self.totals.rules_added += firewall.added;
            self.totals.rules_removed += firewall.removed;
            self.totals.program_runs += firewall.runs;
            if firewall.drifted > 0 {
                *self.repaired.entry("chain").or_default() += firewall.drifted;
            }
        }
        for what in &report.repaired.examples {
            let number = self.repairs.back().map_or(0, |last| last.number + 1);
            self.repairs.push_back(Repair { number, what: what.clone() });
        }
        let surplus = self.repairs.len().saturating_sub(KEPT_REPAIRS);
        self.repairs.drain(..surplus);
    }

    pub(super) fn fail(&mut self, activity: Activity, error: &dyn Error) {
        let text = chain(error);
        self.last_error = Some(format!("{activity}: {text}"));
        self.faults.insert(activity, text);
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Acquire => "acquire a lease",
            Self::Advertise => "find out what to publish",
            Self::Config => "read the network config",
            Self::Hold => "trust the lease",
            Self::Renew => "renew the lease",
            Self::Start => "start the backend",
            Self::Sync => "sync the data path",
            Self::Watch => "watch leases",
        })
    }
}

/// An error with all its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Says which peers are no longer served, and which are again, and the same of the firewall.
pub(super) fn log_problems(before: Option<&SyncReport>, now: &SyncReport) {
    let firewall = |report: Option<&SyncReport>| report.and_then(|report| report.firewall.clone());
    if let Some(now) = &now.firewall {
        log_firewall(&firewall(before).unwrap_or_default(), now);
    }
    let before = before.map_or(&[][..], |report| &report.problems);
    for problem in now.problems.iter().filter(|problem| !before.contains(problem)) {
        warn!(peer = %problem.peer, "peer not served: {}", problem.fault);
    }
    for problem in before {
        if now.problems.iter().all(|p| p.peer != problem.peer) {
            info!(peer = %problem.peer, "peer served again, or gone");
        }
    }
}

fn log_firewall(before: &FirewallReport, now: &FirewallReport) {
    for fault in now.faults.iter().filter(|fault| !before.faults.contains(fault)) {
        warn!("firewall: {fault}; trying again");
    }
    for note in now.notes.iter().filter(|note| !before.notes.contains(note)) {
        warn!("firewall: {note}");
    }
    if now.is_exact() && !before.is_exact() {
        info!("firewall as it should be again");
    }
}

/// How many repairs are remembered: enough to see a pattern, few enough to copy with each look at the status.
const KEPT_REPAIRS: usize = 32;
