//! Changes of a folder, found by comparing what is there with what was there.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream, stream::BoxStream};

use crate::{
    file::{
        folder::{Folder, Found, failed},
        inotify::Notices,
        lock,
    },
    registry::{Change, Lifetime, Record, RegistryError, Snapshot},
};

/// The changes of `folder` after `since`.
pub(super) fn stream(
    folder: Arc<Folder>,
    since: Snapshot,
) -> BoxStream<'static, Result<Change, RegistryError>> {
    let mut watch = Watch {
        folder,
        notices: None,
        seen: BTreeMap::new(),
        hasher: RandomState::new(),
        changes: VecDeque::new(),
    };
    for record in since.records.into_iter().filter(|record| record.lifetime != Lifetime::Lapsed) {
        let seen = Seen { print: watch.print(&record), expires: None };
        watch.seen.insert(record.key, seen);
    }
    stream::unfold(watch, async |mut watch| Some((watch.next().await, watch))).boxed()
}

struct Watch {
    folder: Arc<Folder>,
    notices: Option<Notices>,
    seen: BTreeMap<String, Seen>,
    hasher: RandomState,
    changes: VecDeque<Change>,
}

/// What is known of a file that holds a record whose time is not over.
struct Seen {
    /// A number that differs when a watcher would see a difference.
    print: u64,
    expires: Option<SystemTime>,
}

impl Watch {
    async fn next(&mut self) -> Result<Change, RegistryError> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            let Some(notices) = &mut self.notices else {
                // First the notices, then the list: what happens in between is in both.
                self.notices = Some(self.open().await?);
                self.rescan().await?;
                continue;
            };
            let next_expiry = self.seen.values().filter_map(|seen| seen.expires).min();
            let wait = next_expiry.map_or(LONGEST_WAIT, |expiry| {
                expiry.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST_WAIT)
            });
            let noticed = tokio::select! {
                noticed = notices.next() => Some(noticed),
                () = tokio::time::sleep(wait), if next_expiry.is_some() => None,
            };
            let path = self.folder.subnets_path();
            match noticed.transpose().map_err(failed("follow", &path))? {
                None => self.look_at(self.lapsed()).await?,
                Some(noticed) if noticed.gone => {
                    let gone = std::io::Error::other("the folder was moved or removed");
                    return Err(failed("follow", &path)(gone));
                }
                Some(noticed) if noticed.overflow => self.rescan().await?,
                Some(noticed) => self.look_at(noticed.names.into_iter().collect()).await?,
            }
        }
    }

    async fn open(&self) -> Result<Notices, RegistryError> {
        // Opening registers with the runtime, so it cannot move to another thread; it does not wait for the disk for long.
        let path = self.folder.subnets_path();
        Notices::open(&path, self.folder.root()).map_err(|error| match error.raw_os_error() {
            Some(TOO_MANY) => failed("follow", &path)(std::io::Error::other(
                "this user has too many inotify instances, raise fs.inotify.max_user_instances",
            )),
            _ => failed("follow", &path)(error),
        })
    }

    /// Compares the whole folder.
    async fn rescan(&mut self) -> Result<(), RegistryError> {
        let names = lock::shared(&self.folder, "list the leases", Folder::names).await?;
        let mut names: Vec<OsString> = names;
        // Those that are not there any more read as gone.
        names.extend(self.seen.keys().map(OsString::from));
        names.sort_unstable();
        names.dedup();
        self.look_at(names).await
    }

    /// Compares these files.
    async fn look_at(&mut self, names: Vec<OsString>) -> Result<(), RegistryError> {
        let read = move |folder: &Folder| {
            let now = SystemTime::now();
            let read = |name: OsString| {
                let found = folder.read(&name, now);
                (name, found)
            };
            Ok(names.into_iter().map(read).collect::<Vec<_>>())
        };
        for (name, found) in lock::blocking(&self.folder, read).await? {
            self.compare(name.to_string_lossy().into_owned(), found);
        }
        Ok(())
    }

    fn compare(&mut self, key: String, found: Option<Found>) {
        let live = found.filter(|found| found.record.lifetime != Lifetime::Lapsed);
        let Some(Found { record, expires }) = live else {
            if self.seen.remove(&key).is_some() {
                self.changes.push_back(Change::Delete(key));
            }
            return;
        };
        let print = self.print(&record);
        let before = self.seen.insert(key, Seen { print, expires });
        if before.is_none_or(|before| before.print != print) {
            self.changes.push_back(Change::Put(record));
        }
    }

    fn lapsed(&self) -> Vec<OsString> {
        let now = SystemTime::now();
        let lapsed = self.seen.iter().filter(|(_, seen)| seen.expires.is_some_and(|at| at <= now));
        lapsed.map(|(key, _)| key.into()).collect()
    }

    fn print(&self, record: &Record) -> u64 {
        self.hasher.hash_one((&record.value, &record.owner, record.revision))
    }
}

/// How soon a step of the wall clock is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// `EMFILE`, which is what `inotify_init` says when the user's instances are used up.
const TOO_MANY: i32 = rustix::io::Errno::MFILE.raw_os_error();
