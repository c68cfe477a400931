//! Changes of a folder, found by comparing what is there with what was there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsString,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream, stream::BoxStream};
use tracing::warn;

use crate::{
    file::{
        files::Found,
        folder::{Folder, failed},
        inotify::{Following, Notices},
        listing::{self, Listing, Seen, fingerprint},
        lock,
    },
    registry::{Change, Lifetime, RegistryError, Snapshot},
};

/// The changes of `folder` after `since`; `listing` is what was in the folder shortly before or after that, if it is known.
pub(super) fn stream(
    folder: Arc<Folder>,
    since: Snapshot,
    listing: Option<Listing>,
) -> BoxStream<'static, Result<Change, RegistryError>> {
    let live = since.records.into_iter().filter(|record| record.lifetime != Lifetime::Lapsed);
    let live = live.map(|record| {
        let fingerprint = fingerprint(&record.value, record.owner.as_ref(), record.revision);
        (Box::<str>::from(record.key), Seen { fingerprint, expires: None })
    });
    let (notices, seen): (_, BTreeMap<_, _>) = match listing {
        None => (State::Closed, live.collect()),
        Some(Listing { notices, seen: mut listed }) => {
            let mut differ = Vec::new();
            let known = live.map(|(key, seen)| match listed.remove_entry(&key) {
                Some((key, listed)) if listed.fingerprint == seen.fingerprint => (key, listed),
                _ => {
                    differ.push(OsString::from(&*key));
                    (key, seen)
                }
            });
            let known = known.collect();
            differ.extend(listed.into_keys().map(|key| OsString::from(&*key)));
            (State::Open(notices, differ), known)
        }
    };
    let earliest = seen.values().filter_map(|seen| seen.expires).min();
    let changes = VecDeque::new();
    let watch = Watch { folder, notices, seen, earliest, stopped: None, changes };
    stream::unfold(watch, async |mut watch| Some((watch.next().await, watch))).boxed()
}

struct Watch {
    folder: Arc<Folder>,
    notices: State,
    /// The files that hold records whose time is not over.
    seen: BTreeMap<Box<str>, Seen>,
    /// Nothing that was seen expires before.
    earliest: Option<SystemTime>,
    /// Since when no lease could be renewed, because the disk is full: no lease expires meanwhile.
    stopped: Option<Stopped>,
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
    Followed(Following),
    /// Not known to the runtime yet; these files have to be looked at.
    Open(Notices, Vec<OsString>),
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
                State::Open(..) => {
                    let State::Open(notices, names) =
                        std::mem::replace(&mut self.notices, State::Closed)
                    else {
                        continue;
                    };
                    let followed = notices.follow().map_err(failed("follow", &path))?;
                    self.notices = State::Followed(followed);
                    self.look_at(names).await?;
                    continue;
                }
                State::Closed => {
                    // First the notices, then the list: what happens in between is in both.
                    self.notices = State::Open(listing::open(&self.folder)?, Vec::new());
                    self.rescan().await?;
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
        let (found, now) = (listing::read_all(&self.folder).await?, self.now());
        let mut gone: BTreeSet<Box<str>> = self.seen.keys().cloned().collect();
        for found in found {
            gone.remove(found.key.as_str());
            self.compare(found.key.as_str().into(), Some(found), now);
        }
        for key in gone {
            self.compare(key, None, now);
        }
        Ok(())
    }

    /// Compares these files.
    async fn look_at(&mut self, names: Vec<OsString>) -> Result<(), RegistryError> {
        if names.is_empty() {
            return Ok(());
        }
        let read = move |folder: &Folder| {
            let mut files = folder.files()?;
            let read = |name: OsString| (name.to_string_lossy().into(), files.read(&name));
            Ok(names.into_iter().map(read).collect::<Vec<_>>())
        };
        let now = self.now();
        for (key, found) in lock::blocking(&self.folder, read).await? {
            self.compare(key, found, now);
        }
        Ok(())
    }

    fn compare(&mut self, key: Box<str>, found: Option<Found>, now: SystemTime) {
        let Some(found) = found.filter(|found| !found.has_lapsed(now)) else {
            if self.seen.remove(&key).is_some() {
                self.changes.push_back(Change::Delete(key.into()));
            }
            return;
        };
        let seen = Seen::of(&found);
        self.earliest = self.earliest.into_iter().chain(found.expires).min();
        if self.seen.insert(key, seen).is_none_or(|before| before.fingerprint != seen.fingerprint) {
            self.changes.push_back(Change::Put(found.record(now)));
        }
    }

    /// The files whose time is over. Only here all are looked at, and no more often than the first of them may expire.
    fn lapsed(&mut self, now: SystemTime) -> Vec<OsString> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let expiries = self.seen.values().filter_map(|seen| seen.expires);
        self.earliest = expiries.filter(|expires| *expires > now).min();
        let is_over = |seen: &Seen| seen.expires.is_some_and(|at| at <= now);
        let lapsed = self.seen.iter().filter(|(_, seen)| is_over(seen));
        lapsed.map(|(key, _)| OsString::from(&**key)).collect()
    }
}

/// How often a full disk is tried.
const FULL_PAUSE: Duration = Duration::from_secs(5);

/// How long leases stay after there is room again: longer than the longest wait of a holder between attempts to renew.
const GRACE: Duration = Duration::from_secs(60);

/// How soon a step of the wall clock is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
