//! What one owner has in the kernel, kept as it should be.

mod applier;
mod drift;
mod listing;
mod mark;
mod nexthop_ids;
mod observed;
mod repairs;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use ipnetwork::IpNetwork;
use tokio::time::{Instant, timeout_at};

pub use self::{
    drift::{ChangedBy, Drift, DriftChange, DriftSubject},
    mark::{Mark, blocks_around},
    report::{Action, Failure, TableReport},
};
use self::{
    listing::Listing,
    nexthop_ids::NexthopIds,
    observed::{Cursor, ObservedTable},
    repairs::RepairLimiter,
};
use crate::{
    Connection, KernelError, Monitor, Namespace, OpenError,
    diff::{Op, Stage},
    state::{Key, Link, Object, Route},
};

/// One owner's objects in one network namespace: what is wanted, what is known to be there,
/// and the means to make them equal.
///
/// Say what is wanted with [`want`](Self::want) and [`forget`](Self::forget), or all at once with
/// [`want_only`](Self::want_only); then [`sync`](Self::sync). Only what differs is written, so one
/// changed object costs one object's work however many there are.
///
/// What is known is kept true by the kernel's acknowledgements, and by its notifications of what others
/// change. The kernel is listed at the start, when notifications or a [`sync`](Self::sync) were lost,
/// after changes that the kernel does not tell about, and every five minutes as a check.
///
/// What is wanted at a key is put there, whoever holds the place. What is not wanted is removed
/// only if it carries the owner's [`Mark`]. Everything else is left alone and counted. Dropping the
/// table leaves the kernel as it is.
#[derive(Debug)]
pub struct Table {
    connection: Connection,
    monitor: Monitor,
    observed: ObservedTable,
    nexthop_ids: NexthopIds,
    repairs: RepairLimiter,
    nexthops_supported: bool,
    left_alone: usize,
    last_listing: Option<Listing>,
    changes_since: Option<Instant>,
    /// Routes that are there for as long as others need them to be taken.
    gateway_routes: Vec<Route>,
}

impl Table {
    /// Opens a table in `namespace` for the owner with this mark. Needs a tokio runtime with I/O
    /// and time.
    ///
    /// # Errors
    ///
    /// [`TableError::Open`] when a socket cannot be made there, [`TableError::List`] when the
    /// nexthop objects cannot be listed.
    ///
    /// # Cancel safety
    ///
    /// Writes nothing.
    pub async fn open(namespace: &Namespace, mark: Mark) -> Result<Self, TableError> {
        let failed = |source| TableError::Open { source };
        // The monitor first, so that no change falls between the listing and it.
        let monitor = Monitor::open(namespace).map_err(failed)?;
        let connection = Connection::open(namespace).map_err(failed)?;
        monitor.ignore(connection.port()).map_err(failed)?;
        let nexthop_ids = NexthopIds::new(mark.nexthops.clone());
        let mut table = Self {
            connection,
            monitor,
            observed: ObservedTable::new(mark),
            nexthop_ids,
            repairs: RepairLimiter::default(),
            nexthops_supported: true,
            left_alone: 0,
            last_listing: None,
            changes_since: None,
            gateway_routes: Vec::new(),
        };
        table.read_nexthops().await?;
        Ok(table)
    }

    /// The socket that this table writes through. What else is changed through it counts as the
    /// owner's own doing: the table does not hear of routes, neighbours, forwarding entries and
    /// nexthop objects that are changed so before it lists the kernel next.
    pub const fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Whether this kernel has nexthop objects (Linux 5.3).
    pub const fn nexthops_supported(&self) -> bool {
        self.nexthops_supported
    }

    /// The number for a nexthop object with this gateway: the one it has, also from an earlier run,
    /// or a free one of the mark's range. `None` when the range is used up.
    pub fn nexthop_id(&mut self, link: u32, gateway: IpAddr) -> Option<u32> {
        self.nexthop_ids.number(link, gateway)
    }

    /// Wants this object from the next [`sync`](Self::sync) on, in the place of what was wanted
    /// under the same key.
    pub fn want(&mut self, object: impl Into<Object>) {
        self.want_tagged(0, object);
    }

    /// The same with a tag of the caller's, which [`wanted_tagged`](Self::wanted_tagged) returns. To the table it means nothing; it
    /// costs less here than in a map beside it.
    pub fn want_tagged(&mut self, tag: u32, object: impl Into<Object>) {
        let object = object.into();
        let before = self.observed.want(object, tag);
        if before == Some(object) {
            return;
        }
        self.repairs.forget(&object.key());
        if let Some(Object::Nexthop(before)) = &before {
            self.nexthop_ids.free(before);
        }
        if let Object::Nexthop(nexthop) = &object {
            self.nexthop_ids.note(nexthop, true);
        }
    }

    /// Wants nothing under this key from the next [`sync`](Self::sync) on.
    pub fn forget(&mut self, key: &Key) {
        let Some(wanted) = self.observed.forget(key) else { return };
        self.repairs.forget(key);
        if let Object::Nexthop(nexthop) = &wanted {
            self.nexthop_ids.free(nexthop);
        }
    }

    /// Wants these objects and nothing else from the next [`sync`](Self::sync) on.
    pub fn want_only(&mut self, objects: impl IntoIterator<Item = Object>) {
        let objects: BTreeMap<Key, Object> =
            objects.into_iter().map(|object| (object.key(), object)).collect();
        let gone: Vec<Key> =
            self.observed.wanted_keys().filter(|key| !objects.contains_key(key)).collect();
        for key in gone {
            self.forget(&key);
        }
        for object in objects.into_values() {
            self.want(object);
        }
    }

    /// The keys under which anything is wanted, in no order.
    pub fn wanted_keys(&self) -> impl Iterator<Item = Key> {
        self.observed.wanted_keys()
    }

    /// The same, each behind the tag of what is wanted there.
    pub fn wanted_tags(&self) -> impl Iterator<Item = (u32, Key)> {
        self.observed.wanted_tags()
    }

    /// What is wanted under this key.
    pub fn wanted(&self, key: &Key) -> Option<Object> {
        self.observed.wanted(key)
    }

    /// What is wanted under this key, and its tag; 0 for [`want`](Self::want).
    pub fn wanted_tagged(&self, key: &Key) -> Option<(u32, Object)> {
        self.observed.wanted_tagged(key)
    }

    /// The wanted route that leads to all of `block`; of several the narrowest.
    pub fn route_to(&self, block: IpNetwork) -> Option<Key> {
        self.observed.route_to(block)
    }

    /// Whether this is the index of one of the mark's devices, as of the last listing and what the kernel told since.
    pub fn is_our_device(&self, link: u32) -> bool {
        self.observed.our_devices().contains(&link)
    }

    /// Takes these blocks for those of this host's own pods: routes of others there are no matter of the owner's.
    pub fn set_local(&mut self, blocks: Vec<IpNetwork>) {
        self.observed.set_local(blocks);
    }

    /// Lets [`drifted`](Self::drifted) say when this device is altered (Ethernet address, MTU, up)
    /// or gone. A later call for the same name replaces the earlier one. The device itself is not
    /// repaired here.
    pub fn watch_link(&mut self, link: Link) {
        self.observed.watch_link(link);
    }

    /// Takes back [`watch_link`](Self::watch_link).
    pub fn unwatch_link(&mut self, name: &str) {
        self.observed.unwatch_link(name);
    }

    /// Makes the kernel hold what is wanted. With nothing to do it writes nothing.
    ///
    /// What cannot be done is in the report and is tried again by the next call; it keeps nothing
    /// else from being done. An object that somebody keeps changing is written at the rate
    /// [`RateLimit::REPAIRS`](crate::RateLimit::REPAIRS) at most.
    ///
    /// # Errors
    ///
    /// [`TableError::List`] or [`TableError::Watch`] when the kernel cannot be read; what was
    /// written until then stays.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves part of the work done. The next call does the rest.
    pub async fn sync(&mut self) -> Result<TableReport, TableError> {
        let mut report = TableReport::default();
        let mut failures: BTreeMap<Key, Failure> = BTreeMap::new();
        let mut postponed = BTreeSet::new();
        for _ in 0..ROUNDS {
            self.catch_up()?;
            let now = Instant::now();
            if self.observed.stale() {
                report.read += self.list().await?;
            }
            self.repairs.prune(now);
            let repairs = &self.repairs;
            report.drifts.extend(self.observed.take_drifts(|key| repairs.due(key, now).is_none()));
            let mut wrote = false;
            self.observed.begin_stages();
            for stage in Stage::ALL {
                let mut cursor = Cursor::new(stage);
                loop {
                    let ops = self.next_ops(&mut cursor, now, &failures, &mut postponed);
                    if ops.is_empty() {
                        break;
                    }
                    wrote = true;
                    self.write(&ops, &mut report, &mut failures).await?;
                }
                if stage == Stage::Put {
                    self.remove_gateway_routes().await;
                }
            }
            if !wrote {
                break;
            }
        }
        failures.retain(|key, _| !self.observed.fits(key));
        report.failures = failures.into_values().collect();
        report.postponed = postponed.len();
        report.left_alone = self.left_alone;
        report.overridden = self.observed.overridden();
        for key in postponed {
            self.observed.drift_again(key);
        }
        Ok(report)
    }

    /// Resolves when the kernel no longer holds what was synced, or when what failed may work now,
    /// and says what changed. Changes that come together are reported together. Meant to be
    /// answered by [`sync`](Self::sync), and to be awaited again after it.
    ///
    /// # Errors
    ///
    /// As [`sync`](Self::sync).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call reports it.
    pub async fn drifted(&mut self) -> Result<Vec<Drift>, TableError> {
        loop {
            self.catch_up()?;
            let now = Instant::now();
            if self.listing_due(now) <= now {
                self.list().await?;
            }
            let now = Instant::now();
            let repairs = &self.repairs;
            let mut wake = self.listing_due(now);
            if self.observed.has_changes(|key| repairs.due(key, now).is_none()) {
                let since = *self.changes_since.get_or_insert(now);
                if now >= since + LONGEST_BURST {
                    return Ok(self.report_changes(now));
                }
                wake = wake.min(now + QUIET);
            } else {
                let later = self.observed.drifted_keys().filter_map(|key| repairs.due(key, now));
                wake = later.min().map_or(wake, |later| wake.min(later));
            }
            let own = self.connection.port();
            match timeout_at(wake, self.monitor.next()).await {
                Ok(notice) => {
                    let notice = notice.map_err(|source| TableError::Watch { source })?;
                    self.observed.fold(notice, own);
                }
                Err(_) if self.changes_since.is_some() => {
                    let now = Instant::now();
                    self.catch_up()?;
                    let changes = self.report_changes(now);
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn report_changes(&mut self, now: Instant) -> Vec<Drift> {
        self.changes_since = None;
        let repairs = &self.repairs;
        self.observed.take_changes(|key| repairs.due(key, now).is_none())
    }

    /// Takes in all notifications that wait; whether there were any.
    fn catch_up(&mut self) -> Result<bool, TableError> {
        let own = self.connection.port();
        let mut any = false;
        while let Some(notice) =
            self.monitor.next_waiting().map_err(|source| TableError::Watch { source })?
        {
            self.observed.fold(notice, own);
            any = true;
        }
        Ok(any)
    }

    /// The next steps behind a cursor, as many as one batch takes.
    fn next_ops(
        &self,
        cursor: &mut Cursor,
        now: Instant,
        failures: &BTreeMap<Key, Failure>,
        postponed: &mut BTreeSet<Key>,
    ) -> Vec<Op> {
        let batch = self.connection.batch().min(self.monitor.room());
        self.observed.next_steps(cursor, batch, |key| {
            if failures.contains_key(key) {
                return false;
            }
            let due = self.repairs.due(key, now).is_none();
            if !due {
                postponed.insert(*key);
            }
            due
        })
    }

    /// When [`drifted`](Self::drifted) is to list the kernel next. Its listings take at most a
    /// twentieth of the time, however often they are needed.
    fn listing_due(&self, now: Instant) -> Instant {
        match self.last_listing {
            None => now,
            Some(last) if self.observed.stale() => last.at + last.took * LISTING_SHARE,
            Some(last) => last.at + CHECK_EVERY,
        }
    }
}

/// Why a table could not be opened or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The kernel could not be listed.
    #[error("cannot list {what} in the kernel")]
    List {
        /// Which objects.
        what: &'static str,
        /// The kernel's reason.
        source: KernelError,
    },
    /// A socket could not be made.
    #[error("cannot open a table of kernel objects")]
    Open {
        /// Why.
        source: OpenError,
    },
    /// Notifications could not be read.
    #[error("cannot read the kernel's notifications")]
    Watch {
        /// The kernel's reason.
        source: io::Error,
    },
}

/// As a check against what no notification told.
const CHECK_EVERY: Duration = Duration::from_secs(300);
/// A listing may run again after twenty times the time it took.
const LISTING_SHARE: u32 = 20;
/// A write may make the kernel drop something that is wanted; then it is listed and written once
/// more.
const ROUNDS: usize = 3;
/// So long without a notification ends a burst.
const QUIET: Duration = Duration::from_millis(5);
/// A burst is reported after this time even if it goes on.
const LONGEST_BURST: Duration = Duration::from_millis(50);
