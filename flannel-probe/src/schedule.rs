//! When which path is probed: all paths, in turn, within the budget. Time and randomness are arguments.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use flannel_core::Subnet;
use flannel_netlink::state::IpFamily;
use tokio::time::Instant;

use crate::{
    bucket::Bucket,
    findings::{PathFinding, PathMtu},
    options::Options,
    path::{Layer, Path, Probe, RoundKind, Step},
    targets::{Target, Targets},
};

/// A path, by peer and family.
pub(crate) type Key = (Subnet, IpFamily);

/// All paths.
#[derive(Debug)]
pub(crate) struct Schedule {
    options: Options,
    entries: BTreeMap<Key, Entry>,
    by_address: HashMap<(Layer, IpAddr), Key>,
    due: BTreeSet<(Instant, Key)>,
    budget: Bucket,
}

#[derive(Debug)]
struct Entry {
    target: Target,
    path: Path,
    due: Instant,
    /// When it is probed in full.
    full_at: Instant,
    /// What we answer it.
    answers: Bucket,
}

/// Requests to send on one path.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) key: Key,
    pub(crate) target: Target,
    pub(crate) probes: Vec<Probe>,
}

impl Schedule {
    pub(crate) fn new(options: Options, now: Instant) -> Self {
        // A small cluster is probed without delay.
        let budget = Bucket::new(BURST.max(options.per_second), options.per_second, now);
        Self {
            options,
            entries: BTreeMap::new(),
            by_address: HashMap::new(),
            due: BTreeSet::new(),
            budget,
        }
    }

    /// Goes on with these targets. What is the same goes on as it was. `share` is a random number from 0 to 1.
    pub(crate) fn follow(
        &mut self,
        targets: &Targets,
        now: Instant,
        mut share: impl FnMut() -> f64,
    ) {
        let mut before = std::mem::take(&mut self.entries);
        (self.by_address, self.due) = Default::default();
        for target in &targets.peers {
            let Some(end) = targets.end(target.family()) else { continue };
            let target =
                Target { overlay: target.overlay.filter(|_| end.overlay.is_some()), ..*target };
            let key = (target.peer, target.family());
            let known = before.remove(&key).filter(|entry| entry.target == target);
            let mut entry = known.unwrap_or_else(|| Entry {
                target,
                path: Path::new(headers(&target.address), end.needed, target.overlay.is_some()),
                // Nodes start together, and so do their peers.
                due: now + SOON.mul_f64(share()),
                full_at: now,
                answers: Bucket::new(MOST_ANSWERS, ANSWERS_PER_SECOND, now),
            });
            if entry.path.needed() != end.needed {
                entry.path.set_needed(end.needed);
                entry.due = now + SOON.mul_f64(share());
            }
            self.by_address.entry((Layer::Underlay, target.address)).or_insert(key);
            if let Some(overlay) = target.overlay {
                self.by_address.entry((Layer::Overlay, overlay)).or_insert(key);
            }
            self.due.insert((entry.due, key));
            self.entries.insert(key, entry);
        }
    }

    /// When there is something to do.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| (*due).max(self.budget.ready()))
    }

    /// The path that is due, after what it waited for; `None` if none is, or too much was sent. Whether anything new is known is
    /// told with it.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        nonce: impl FnMut() -> u64,
        share: impl FnOnce() -> f64,
    ) -> Option<(Option<Batch>, bool)> {
        let (due, key) = *self.due.first()?;
        if due > now || !self.budget.take(0, now) {
            return None;
        }
        let interval = self.options.interval_of(self.entries.len());
        let confirm_interval = self.options.confirm_interval_of(self.entries.len());
        let timeout = self.options.timeout;
        let share = share();
        let entry = self.entries.get_mut(&key)?;
        let known = entry.path.known();
        let is_new = !entry.path.is_probing();
        let step = if is_new { Step::Continue } else { entry.path.conclude() };
        let kind = match entry.path.has_size() && now < entry.full_at {
            true => RoundKind::Confirm,
            false => RoundKind::Full,
        };
        if is_new && kind == RoundKind::Full {
            // Half as long to half as long again, so that nodes do not keep step.
            entry.full_at = now + interval.mul_f64(0.5 + share);
        }
        let due = match step {
            Step::Continue => now + timeout,
            Step::Recheck => {
                entry.full_at = now + SOON.min(interval);
                entry.full_at
            }
            Step::Done if entry.path.has_size() => {
                entry.full_at.min(now + confirm_interval.mul_f64(0.75 + share / 2.0))
            }
            Step::Done => entry.full_at,
        };
        let mut send = None;
        if step == Step::Continue {
            let probes = entry.path.next_probes(kind, nonce);
            self.budget.take(probes.len(), now);
            send = Some(Batch { key, target: entry.target, probes });
        }
        let learnt = entry.path.known() != known;
        self.set_due(key, due);
        Some((send, learnt))
    }

    /// Takes an answer; false if it answers no probe.
    pub(crate) fn answered(
        &mut self,
        from: IpAddr,
        layer: Layer,
        nonce: u64,
        size: u32,
        now: Instant,
    ) -> bool {
        let Some(key) = self.by_address.get(&(layer, from)).copied() else { return false };
        let Some(entry) = self.entries.get_mut(&key) else { return false };
        let is_ours = entry.path.answered(nonce, layer, size);
        if is_ours {
            // What was sent with it comes with it, or not at all.
            let soon = entry.due.min(now + TOGETHER);
            self.set_due(key, soon);
            self.go_on(key, now);
        }
        is_ours
    }

    /// The kernel says that a probe is larger than what it may send.
    pub(crate) fn refused(&mut self, key: Key, nonce: u64, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.path.refused(nonce);
            self.go_on(key, now);
        }
    }

    /// Whether to answer a probe from this address. A peer that asks can answer too, so one that was silent is probed soon.
    pub(crate) fn may_reply(
        &mut self,
        from: IpAddr,
        layer: Layer,
        now: Instant,
        share: impl FnOnce() -> f64,
    ) -> bool {
        let Some(key) = self.by_address.get(&(layer, from)).copied() else { return false };
        let Some(entry) = self.entries.get_mut(&key) else { return false };
        let may = entry.answers.take(1, now);
        let was_silent = entry.path.known().mtu == PathMtu::NoAnswer && !entry.path.is_probing();
        let soon = now + SOON.mul_f64(share());
        if was_silent && entry.due > soon {
            self.set_due(key, soon);
        }
        may
    }

    /// How many paths there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What is known of all paths.
    pub(crate) fn findings(&self) -> BTreeMap<Key, PathFinding> {
        let finding = |entry: &Entry| {
            let known = entry.path.known();
            PathFinding {
                address: entry.target.address,
                needed: entry.path.needed(),
                mtu: known.mtu,
                underlay: known.underlay,
                overlay: known.overlay,
            }
        };
        self.entries.iter().map(|(key, entry)| (*key, finding(entry))).collect()
    }

    /// Probes a path now if it has nothing to wait for any more.
    fn go_on(&mut self, key: Key, now: Instant) {
        if self.entries.get(&key).is_some_and(|entry| entry.path.is_settled()) {
            self.set_due(key, now);
        }
    }

    fn set_due(&mut self, key: Key, due: Instant) {
        if let Some(entry) = self.entries.get_mut(&key) {
            self.due.remove(&(entry.due, key));
            entry.due = due;
            self.due.insert((due, key));
        }
    }
}

/// IP and UDP in front of what is sent to an address, bytes.
pub(crate) fn headers(address: &IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    }
}

/// A new path is probed within this, and one that is to be rechecked again after it.
const SOON: Duration = Duration::from_secs(1);
/// Of probes that are sent together, the last is answered so much later than the first, at most: eight packets of 1500 bytes take
/// this long on a link of 1 Mbit/s.
const TOGETHER: Duration = Duration::from_millis(100);
/// What may be sent at once: full rounds on 30 paths.
const BURST: u32 = 200;
/// How much a peer is answered at once: twice what a search asks.
const MOST_ANSWERS: u32 = 256;
/// And after that: more than an honest peer asks.
const ANSWERS_PER_SECOND: u32 = 20;

#[cfg(test)]
mod schedule_tests;
