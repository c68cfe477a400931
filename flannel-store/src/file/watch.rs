//! Changes of a folder, found by comparing what is there with what was there.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, SystemTime},
};

use flannel_core::NodeId;
use futures::{StreamExt, stream, stream::BoxStream};

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
        hasher: RandomState::new(),
        changes: VecDeque::new(),
    };
    let live = since.records.into_iter().filter(|record| record.lifetime != Lifetime::Lapsed);
    let seen = live.map(|record| {
        let print = watch.print(&record.value, record.owner.as_ref(), record.revision);
        (record.key.into_boxed_str(), Seen { print, expires: None })
    });
    watch.seen = seen.collect();
    stream::unfold(watch, async |mut watch| Some((watch.next().await, watch))).boxed()
}

struct Watch {
    folder: Arc<Folder>,
    notices: State,
    seen: BTreeMap<Box<str>, Seen>,
    /// Nothing that was seen expires before.
    earliest: Option<SystemTime>,
    hasher: RandomState,
    changes: VecDeque<Change>,
}

enum State {
    Closed,
    /// What happened since the listing has to be taken in first.
    Listed(Listing),
    Followed(Following),
    /// Not known to the runtime yet.
    Open(Notices),
}

/// What is known of a file that holds a record whose time is not over.
struct Seen {
    /// A number that differs when a watcher would see a difference.
    print: u64,
    expires: Option<SystemTime>,
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
            let wait = self.earliest.map_or(LONGEST_WAIT, |earliest| {
                earliest.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST_WAIT)
            });
            let noticed = tokio::select! {
                noticed = notices.next() => Some(noticed),
                () = tokio::time::sleep(wait), if self.earliest.is_some() => None,
            };
            match noticed.transpose().map_err(failed("follow", &path))? {
                None => {
                    let lapsed = self.lapsed(SystemTime::now());
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
            let read = |name: OsString| (name.to_string_lossy().into_owned(), files.read(&name));
            Ok(names.into_iter().map(read).collect::<Vec<_>>())
        };
        let now = SystemTime::now();
        for (key, found) in lock::blocking(&self.folder, read).await? {
            self.compare(key, found, now);
        }
        Ok(())
    }

    /// Takes in that the folder holds these files and no others.
    fn compare_all(&mut self, found: &Pile) {
        let now = SystemTime::now();
        let mut gone = std::mem::take(&mut self.seen);
        for found in found.iter() {
            if let Some((key, seen)) = gone.remove_entry(found.key.as_str()) {
                self.seen.insert(key, seen);
            }
            self.compare(found.key.clone(), Some(found), now);
        }
        self.changes.extend(gone.into_keys().map(|key| Change::Delete(key.into())));
    }

    fn compare(&mut self, key: String, found: Option<Found>, now: SystemTime) {
        let Some(found) = found.filter(|found| !found.has_lapsed(now)) else {
            if self.seen.remove(key.as_str()).is_some() {
                self.changes.push_back(Change::Delete(key));
            }
            return;
        };
        let print = self.print(&found.value, found.owner.as_ref(), found.revision);
        let expires = found.expires;
        self.earliest = self.earliest.into_iter().chain(expires).min();
        if let Some(seen) = self.seen.get_mut(key.as_str()) {
            let before = std::mem::replace(seen, Seen { print, expires });
            if before.print == print {
                return;
            }
        } else {
            self.seen.insert(key.into_boxed_str(), Seen { print, expires });
        }
        self.changes.push_back(Change::Put(found.record(now)));
    }

    /// The files whose time is over. Only here all are looked at, and no more often than the first of them may expire.
    fn lapsed(&mut self, now: SystemTime) -> Vec<OsString> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let expiries = self.seen.values().filter_map(|seen| seen.expires);
        self.earliest = expiries.filter(|expires| *expires > now).min();
        let lapsed = self.seen.iter().filter(|(_, seen)| seen.expires.is_some_and(|at| at <= now));
        lapsed.map(|(key, _)| OsString::from(&**key)).collect()
    }

    fn print(&self, value: &Result<String, String>, owner: Option<&NodeId>, revision: u64) -> u64 {
        self.hasher.hash_one((value, owner, revision))
    }
}

/// How soon a step of the wall clock is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
