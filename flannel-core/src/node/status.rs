//! What a node shows of itself.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    config::NetworkConfig,
    fault::{Activity, Fault},
    lease::Lease,
    peer_fault::{KnownProblems, PeerProblem},
    report::SyncReport,
    subnet::Subnet,
};

/// A node at one moment.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Status {
    /// The network configuration that this node follows; `None` until it is read.
    pub config: Option<NetworkConfig>,
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
    /// How many changes by others were found and undone, by kind of object.
    pub repaired: BTreeMap<Cow<'static, str>, u64>,
    /// The latest of these changes, oldest first, at most 32. Their numbers go up without gaps.
    pub repairs: VecDeque<Repair>,
    /// Whether the data path was as it should be when it was last looked at.
    pub in_sync: bool,
    /// What does not work right now; retried until it does. The problems of single peers are in [`refused`](Self::refused) and
    /// [`last_sync`](Self::last_sync).
    pub faults: Vec<Fault>,
    /// The latest fault, kept after it is over.
    pub last_error: Option<String>,
    /// Whether the node has run and does not any more: the rest is what was true then.
    pub ended: bool,
}

/// What all syncs of a node did, in objects.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Totals {
    /// Listed.
    pub read: u64,
    /// Not there before.
    pub added: u64,
    /// There with other values before.
    pub replaced: u64,
    /// Of ours, and needed by nobody any more.
    pub removed: u64,
    /// What backends count under names of their own.
    pub counters: BTreeMap<Cow<'static, str>, u64>,
}

/// A change by somebody else that a sync has undone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Repair {
    /// Its number, from 0 on.
    pub number: u64,
    /// What was changed, how, and by whom if the kernel says so.
    pub what: String,
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
        self.lease.is_some() && self.fault(Activity::Hold).is_none()
    }

    /// The first fault of an activity.
    pub fn fault(&self, activity: Activity) -> Option<&Fault> {
        self.faults.iter().find(|fault| fault.activity == activity)
    }

    /// Whether there are peers and at least one of them has no problem.
    pub fn serves_any_peer(&self) -> bool {
        let problems = self.last_sync.as_ref().map_or(0, SyncReport::peers_with_problems);
        self.peers.is_some_and(|peers| peers > problems)
    }

    /// Adds up what a sync did.
    pub(super) fn count(&mut self, report: &SyncReport) {
        self.totals.read += report.read;
        self.totals.added += report.added;
        self.totals.replaced += report.replaced;
        self.totals.removed += report.removed;
        for (kind, count) in &report.repaired.by_kind {
            *self.repaired.entry(kind.clone()).or_default() += count;
        }
        for (name, count) in &report.counters {
            *self.totals.counters.entry(name.clone()).or_default() += count;
        }
        for what in &report.repaired.examples {
            let number = self.repairs.back().map_or(0, |last| last.number + 1);
            self.repairs.push_back(Repair { number, what: what.clone() });
        }
        let surplus = self.repairs.len().saturating_sub(KEPT_REPAIRS);
        self.repairs.drain(..surplus);
    }

    /// Replaces all faults of `activity` by `faults`. What was there already is as old as it was. Returns whether anything changed.
    pub(super) fn set_faults(&mut self, activity: Activity, faults: Vec<Fault>) -> bool {
        let before: Vec<_> = self.faults.extract_if(.., |it| it.activity == activity).collect();
        let now = SystemTime::now();
        let unchanged = before.len() == faults.len()
            && faults.iter().zip(&before).all(|(fault, before)| fault.is_same(before));
        for fault in faults {
            let known = before.iter().find(|it| {
                (it.kind, &it.object, &it.operation)
                    == (fault.kind, &fault.object, &fault.operation)
            });
            let since = known.map_or(now, |known| known.since);
            self.last_error = Some(format!("{}: {}", fault.operation, fault.reason));
            self.faults.push(Fault { since, activity, ..fault });
        }
        self.faults.sort_by_key(|fault| fault.activity);
        !unchanged
    }
}

/// Logs which peers are no longer served and which are again, and the same of the data path as a whole.
pub(super) fn log_problems(before: Option<&SyncReport>, now: &SyncReport) {
    let nothing = SyncReport::default();
    let before = before.unwrap_or(&nothing);
    let is_new = |fault: &&Fault| !before.faults.iter().any(|it| it.is_same(fault));
    for fault in now.faults.iter().filter(is_new) {
        warn!("{}: {fault}; retrying", fault.object);
    }
    for warning in now.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
        warn!("{warning}");
    }
    if now.faults.is_empty() && !before.faults.is_empty() {
        info!("the data path is as it should be again");
    }
    let (begun, over) = compare(&before.problems, &now.problems);
    let (named, more) = first_few(&begun);
    for problem in named {
        warn!(peer = %problem.peer, "peer not served: {}", problem.fault);
    }
    if more > 0 {
        warn!("and {more} more problems of peers");
    }
    let (named, more) = first_few(&over);
    for peer in named {
        info!(%peer, "peer served again, or gone");
    }
    if more > 0 {
        info!("and {more} more peers");
    }
}

/// The problems that have begun, and the peers that have none any more.
fn compare<'a>(
    before: &'a [PeerProblem],
    now: &'a [PeerProblem],
) -> (Vec<&'a PeerProblem>, Vec<Subnet>) {
    let known = KnownProblems::new(before);
    let begun = now.iter().filter(|problem| known.find(problem).is_none()).collect();
    let still: BTreeSet<_> = now.iter().map(|problem| problem.peer).collect();
    let before: BTreeSet<_> = before.iter().map(|problem| problem.peer).collect();
    (begun, before.difference(&still).copied().collect())
}

/// Those that are named in the log for one sync, and how many more there are.
fn first_few<T>(all: &[T]) -> (&[T], usize) {
    let (named, more) = all.split_at(all.len().min(LOGGED_PEERS));
    (named, more.len())
}

/// How many peers are named in the log for one sync.
const LOGGED_PEERS: usize = 8;

/// How many repairs are remembered: enough to see a pattern, few enough to copy with each look at the status.
const KEPT_REPAIRS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FaultKind, PeerFault};

    #[test]
    fn a_problem_is_news_when_it_begins_and_its_peer_when_it_is_served_again() {
        let problem = |n: u8, detail: &str, since| {
            let peer = format!("10.3.{n}.0-24").parse().unwrap();
            let fault = PeerFault::BadData { detail: detail.into() };
            PeerProblem { since, ..PeerProblem::new(peer, None, fault) }
        };
        let (early, late) = (SystemTime::UNIX_EPOCH, SystemTime::now());
        let before = [problem(1, "x", early), problem(2, "x", early), problem(3, "x", early)];
        let now = [problem(2, "x", late), problem(3, "x", late), problem(3, "y", late)];
        assert_eq!(compare(&before, &now), (vec![&now[2]], vec![before[0].peer]));
    }

    #[test]
    fn faults_change_when_one_comes_or_goes_and_not_when_they_are_seen_again() {
        let fault = |object: &str| {
            Fault::new(FaultKind::KernelRefused, object, "write", "no").during(Activity::Watch)
        };
        let mut status = Status::default();
        for (objects, changes) in [
            (vec!["a"], true),
            (vec!["a"], false),
            (vec!["a", "b"], true),
            (vec!["b"], true),
            (vec!["c"], true),
            (vec![], true),
            (vec![], false),
        ] {
            let faults = objects.iter().map(|it| fault(it)).collect();
            let since = status.fault(Activity::Watch).map(|it| it.since);
            assert_eq!(status.set_faults(Activity::Watch, faults), changes, "{objects:?}");
            let now: Vec<_> = status.faults.iter().map(|it| (it.activity, &*it.object)).collect();
            let objects: Vec<_> = objects.iter().map(|it| (Activity::Watch, *it)).collect();
            assert_eq!(now, objects);
            let first = status.faults.first().map(|it| it.since);
            assert!(first.is_none_or(|it| it > SystemTime::UNIX_EPOCH));
            assert!(changes || first == since, "it is as old as it was");
        }
        // Whatever a backend says that it was doing.
        status.set_faults(Activity::Sync, vec![fault("a")]);
        assert_eq!(status.faults[0].activity, Activity::Sync);
    }

    #[test]
    fn the_rest_of_many_is_counted() {
        assert_eq!(first_few(&[7]), (&[7][..], 0));
        assert_eq!(first_few(&[7; LOGGED_PEERS]), (&[7; LOGGED_PEERS][..], 0));
        assert_eq!(first_few(&[7; LOGGED_PEERS + 3]), (&[7; LOGGED_PEERS][..], 3));
    }
}
