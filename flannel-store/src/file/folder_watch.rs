//! Changes of a folder, found by comparing what is there with what was there.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flannel_core::{NodeId, Subnet};
use futures::{StreamExt, stream, stream::BoxStream};
use tracing::warn;

use crate::{
    file::{
        files::Found,
        folder::{Folder, failed},
        inotify::{Following, Notices},
        listing::{self, Listing},
        lock,
        pile::Pile,
    },
    registry::{Change, Lifetime, RegistryError, Snapshot},
};

/// The changes of `folder` after `since`; `listing` is what was in the folder shortly before or after that, if it is known.
pub(super) fn stream(
    folder: Arc<Folder>,
    since: Snapshot,
    listing: Option<Listing>,
) -> BoxStream<'static, Result<Change, RegistryError>> {
    let mut watch = Watch {
        folder,
        notices: listing.map_or(State::Closed, State::Listed),
        seen: BTreeMap::new(),
        earliest: None,
        stopped: None,
        hasher: RandomState::new(),
        changes: VecDeque::new(),
    };
    let live = since.records.into_iter().filter(|record| record.lifetime != Lifetime::Lapsed);
    let seen = live.map(|record| {
        let print = watch.print(&record.value, record.owner.as_ref(), record.revision);
        (Name::of(&record.key), Seen { print, expires: Expiry::NEVER })
    });
    watch.seen = seen.collect();
    stream::unfold(watch, async |mut watch| Some((watch.next().await, watch))).boxed()
}

struct Watch {
    folder: Arc<Folder>,
    notices: State,
    seen: BTreeMap<Name, Seen>,
    /// Nothing that was seen expires before.
    earliest: Option<SystemTime>,
    /// Since when no lease could be renewed, because the disk is full: no lease expires meanwhile.
    stopped: Option<Stopped>,
    hasher: RandomState,
    changes: VecDeque<Change>,
}

/// Time that stands still.
#[derive(Clone, Copy)]
struct Stopped {
    at: SystemTime,
    /// Until when, once there is room again: holders have to notice.
    until: Option<SystemTime>,
}

enum State {
    Closed,
    /// What happened since the listing has to be taken in first.
    Listed(Listing),
    Followed(Following),
    /// Not known to the runtime yet.
    Open(Notices),
}

/// The name of a file. Nearly all are those of leases, which need no memory of their own.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Name {
    Lease(Subnet),
    Stray(Box<str>),
}

/// What is known of a file that holds a record whose time is not over.
struct Seen {
    /// A number that differs when a watcher would see a difference.
    print: u64,
    expires: Expiry,
}

/// When a record goes away, if ever: milliseconds since 1970, rounded up, in half the memory of a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Expiry(u64);

impl Expiry {
    const NEVER: Self = Self(u64::MAX);

    fn of(time: Option<SystemTime>) -> Self {
        let Some(time) = time else { return Self::NEVER };
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }

    fn time(self) -> Option<SystemTime> {
        let at = UNIX_EPOCH.checked_add(Duration::from_millis(self.0));
        at.filter(|_| self != Self::NEVER)
    }
}

impl Name {
    fn of(key: &str) -> Self {
        key.parse().map_or_else(|_| Self::Stray(key.into()), Self::Lease)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease(subnet) => subnet.fmt(f),
            Self::Stray(key) => key.fmt(f),
        }
    }
}

impl Watch {
    async fn next(&mut self) -> Result<Change, RegistryError> {
        let path = self.folder.subnets_path();
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            let notices = match &mut self.notices {
                State::Followed(notices) => notices,
                state => {
                    match std::mem::replace(state, State::Closed) {
                        State::Open(notices) => {
                            let followed = notices.follow().map_err(failed("follow", &path))?;
                            *state = State::Followed(followed);
                        }
                        State::Listed(listing) => {
                            if let Some(listing) = listing.caught_up(&self.folder).await {
                                self.compare_all(&listing.found);
                                self.notices = State::Open(listing.notices);
                            }
                        }
                        State::Closed | State::Followed(_) => {
                            // First the notices, then the list: what happens in between is in both.
                            *state = State::Open(listing::open(&self.folder)?);
                            self.rescan().await?;
                        }
                    }
                    continue;
                }
            };
            let longest = if self.stopped.is_some() { FULL_PAUSE } else { LONGEST_WAIT };
            let wait = match (self.earliest, self.stopped) {
                (Some(earliest), None) => {
                    earliest.duration_since(SystemTime::now()).unwrap_or_default().min(longest)
                }
                _ => longest,
            };
            let noticed = tokio::select! {
                noticed = notices.next() => Some(noticed),
                () = tokio::time::sleep(wait), if self.earliest.is_some() => None,
            };
            match noticed.transpose().map_err(failed("follow", &path))? {
                None => {
                    self.stop_or_go_on().await?;
                    let lapsed = self.lapsed(self.now());
                    self.look_at(lapsed).await?;
                }
                Some(noticed) if noticed.gone => {
                    let gone = std::io::Error::other("the folder was moved or removed");
                    return Err(failed("follow", &path)(gone));
                }
                Some(noticed) if noticed.overflow => self.rescan().await?,
                Some(noticed) => self.look_at(noticed.names.into_iter().collect()).await?,
            }
        }
    }

    /// Stops time before the first lease expires that could not be renewed, and goes on a while after it can be.
    async fn stop_or_go_on(&mut self) -> Result<(), RegistryError> {
        let now = SystemTime::now();
        let Some(earliest) = self.earliest.filter(|earliest| *earliest <= now) else {
            return Ok(());
        };
        let room = lock::exclusive(&self.folder, "look for room", Folder::has_room).await;
        self.stopped = match (room, self.stopped) {
            (Ok(false), None) => {
                let path = self.folder.root().display().to_string();
                warn!(
                    path,
                    "the disk is full, so that no lease can be renewed: all leases stay until there is room"
                );
                Some(Stopped { at: earliest - Duration::from_millis(1), until: None })
            }
            (Ok(false), Some(stopped)) => Some(Stopped { until: None, ..stopped }),
            (_, Some(Stopped { at, until: None })) => {
                Some(Stopped { at, until: Some(now + GRACE) })
            }
            (_, Some(Stopped { until: Some(until), .. })) if until <= now => None,
            (_, stopped) => stopped,
        };
        Ok(())
    }

    fn now(&self) -> SystemTime {
        self.stopped.map_or_else(SystemTime::now, |stopped| stopped.at)
    }

    /// Compares the whole folder.
    async fn rescan(&mut self) -> Result<(), RegistryError> {
        let found = listing::read_all(&self.folder).await?;
        self.compare_all(&found);
        Ok(())
    }

    /// Compares these files.
    async fn look_at(&mut self, names: Vec<OsString>) -> Result<(), RegistryError> {
        if names.is_empty() {
            return Ok(());
        }
        let read = move |folder: &Folder| {
            let mut files = folder.files()?;
            let read = |name: OsString| (Name::of(&name.to_string_lossy()), files.read(&name));
            Ok(names.into_iter().map(read).collect::<Vec<_>>())
        };
        let now = self.now();
        for (name, found) in lock::blocking(&self.folder, read).await? {
            self.compare(name, found, now);
        }
        Ok(())
    }

    /// Takes in that the folder holds these files and no others.
    fn compare_all(&mut self, found: &Pile) {
        let now = self.now();
        let mut there: Vec<Name> = Vec::with_capacity(found.len());
        for found in found.iter() {
            let name = Name::of(&found.key);
            there.push(name.clone());
            self.compare(name, Some(found), now);
        }
        there.sort_unstable();
        let is_gone = |name: &&Name| there.binary_search(name).is_err();
        let gone: Vec<Name> = self.seen.keys().filter(is_gone).cloned().collect();
        for name in gone {
            self.compare(name, None, now);
        }
    }

    fn compare(&mut self, name: Name, found: Option<Found>, now: SystemTime) {
        let Some(found) = found.filter(|found| !found.has_lapsed(now)) else {
            if self.seen.remove(&name).is_some() {
                self.changes.push_back(Change::Delete(name.to_string()));
            }
            return;
        };
        let print = self.print(&found.value, found.owner.as_ref(), found.revision);
        self.earliest = self.earliest.into_iter().chain(found.expires).min();
        let seen = Seen { print, expires: Expiry::of(found.expires) };
        if self.seen.insert(name, seen).is_none_or(|before| before.print != print) {
            self.changes.push_back(Change::Put(found.record(now)));
        }
    }

    /// The files whose time is over. Only here all are looked at, and no more often than the first of them may expire.
    fn lapsed(&mut self, now: SystemTime) -> Vec<OsString> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let expiries = self.seen.values().filter_map(|seen| seen.expires.time());
        self.earliest = expiries.filter(|expires| *expires > now).min();
        let is_over = |seen: &Seen| seen.expires.time().is_some_and(|at| at <= now);
        let lapsed = self.seen.iter().filter(|(_, seen)| is_over(seen));
        lapsed.map(|(name, _)| OsString::from(name.to_string())).collect()
    }

    fn print(&self, value: &Result<String, String>, owner: Option<&NodeId>, revision: u64) -> u64 {
        self.hasher.hash_one((value, owner, revision))
    }
}

/// How often a full disk is tried.
const FULL_PAUSE: Duration = Duration::from_secs(5);

/// How long leases stay after there is room again: longer than the longest wait of a holder between attempts to renew.
const GRACE: Duration = Duration::from_secs(60);

/// How soon a step of the wall clock is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_the_same_when_it_is_printed(
            key in "(10\\.3\\.[0-9]{1,3}\\.[0-9]{1,2}-2[0-9]|fd00::[0-9a-f]{1,4}-64|\\PC{0,20})",
        ) {
            prop_assert_eq!(Name::of(&key).to_string(), key);
        }

        #[test]
        fn an_expiry_is_never_before_its_time(nanos in 0..u64::MAX) {
            let time = UNIX_EPOCH + Duration::from_nanos(nanos);
            let kept = Expiry::of(Some(time)).time().unwrap();
            prop_assert!(kept >= time && kept < time + Duration::from_millis(1));
        }
    }

    #[test]
    fn what_never_expires_has_no_time() {
        assert_eq!(Expiry::of(None).time(), None);
        assert_eq!(size_of::<(Name, Seen)>(), 40);
    }
}
