//! A folder as a key-value engine.

use std::{
    ffi::OsStr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::time::{sleep, timeout};

use crate::{
    file::{
        files::Found,
        folder::{Folder, failed},
        folder_watch,
        inotify::Notices,
        lease_file::{Entry, expiry},
        listing::{self, Listing, Seen},
        lock,
    },
    registry::{
        Change, ConfigText, Lifetime, NewRecord, Record, Registry, RegistryError, Snapshot,
    },
};

/// The folder behind a [`FileStore`](crate::FileStore), whose documentation says what is in it.
#[derive(Clone, Debug)]
pub struct FileRegistry {
    folder: Arc<Folder>,
    start: Arc<Mutex<Start>>,
}

/// What the first watch begins with, so that it need not read all files again.
#[derive(Debug, Default)]
enum Start {
    /// A watch has begun: from now on nothing stays open behind a list.
    Followed,
    Listed(Listing),
    #[default]
    Unlisted,
}

impl FileRegistry {
    /// Opens the folder at `path`, making it if it is not there.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Denied`] and [`RegistryError::Unavailable`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, RegistryError> {
        let folder = Arc::new(Folder::new(path.as_ref()));
        lock::blocking(&folder, Folder::create).await?;
        lock::exclusive(&folder, "open the store", Folder::clean).await?;
        Ok(Self { folder, start: Arc::default() })
    }

    fn start(&self) -> MutexGuard<'_, Start> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration once it differs from `seen`. It is read when the kernel tells of a change, and at this interval.
    async fn config_changed_polling(
        &self,
        seen: &ConfigText,
        interval: Duration,
    ) -> Result<ConfigText, RegistryError> {
        let path = self.folder.config_path();
        loop {
            // Before it is read: what happens meanwhile is in both.
            let notices = Notices::of_file(&path).and_then(Notices::follow).ok();
            let config = self.config().await?;
            if config != *seen {
                return Ok(config);
            }
            match notices {
                Some(mut notices) => {
                    if let Ok(noticed) = timeout(interval, notices.next()).await {
                        noticed.map_err(failed("follow", &path))?;
                    }
                }
                None => sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Works on the file at `key` while nobody else writes.
    async fn change<T: Send + 'static>(
        &self,
        verb: &str,
        key: &str,
        work: impl FnOnce(&Folder, &str, Option<Found>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let owned = key.to_owned();
        let change = move |folder: &Folder| {
            let found = folder.read(OsStr::new(&owned))?;
            work(folder, &owned, found)
        };
        lock::exclusive(&self.folder, &format!("{verb} the lease {key}"), change).await
    }
}

#[async_trait]
impl Registry for FileRegistry {
    async fn config(&self) -> Result<ConfigText, RegistryError> {
        let text = lock::blocking(&self.folder, Folder::config).await?;
        Ok(ConfigText { place: self.folder.config_path().display().to_string(), text })
    }

    async fn config_changed(&self, seen: &ConfigText) -> Result<ConfigText, RegistryError> {
        self.config_changed_polling(seen, FOLLOWED_POLL_INTERVAL).await
    }

    async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
        let (was, text) = (was.text.clone(), text.to_owned());
        let set = move |folder: &Folder| folder.set_config(was.as_deref(), &text);
        lock::exclusive(&self.folder, "write the network config", set).await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        let notices = match *self.start() {
            Start::Followed => None,
            // Before anything is read: what happens meanwhile is in both. Reading goes on without; who follows is told why that
            // is not possible.
            Start::Listed(_) | Start::Unlisted => listing::open(&self.folder).ok(),
        };
        let found = listing::read_all(&self.folder).await?;
        if let (Some(notices), start @ (Start::Listed(_) | Start::Unlisted)) =
            (notices, &mut *self.start())
        {
            let seen = found.iter().map(|found| (found.key.as_str().into(), Seen::of(found)));
            *start = Start::Listed(Listing { notices, seen: seen.collect() });
        }
        Ok(listing::snapshot(found, SystemTime::now()))
    }

    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError> {
        let write = write.clone();
        let create = move |folder: &Folder, key: &str, found: Option<Found>| {
            let now = SystemTime::now();
            match found.filter(|found| !found.has_lapsed(now)) {
                Some(found) => Err(conflict(Some(found.record(now)))),
                None => put_free(folder, key, write),
            }
        };
        self.change("create", key, create).await
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        let (was, write) = (was.clone(), write.clone());
        let key = was.key.clone();
        let update = move |folder: &Folder, key: &str, found: Option<Found>| {
            let record = compare(found, &was, SystemTime::now())?;
            match record.lifetime {
                Lifetime::Lapsed => put_free(folder, key, write),
                Lifetime::Bounded | Lifetime::Unbounded => put(folder, key, write),
            }
        };
        self.change("update", &key, update).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        let was = was.clone();
        let key = was.key.clone();
        let touch = move |folder: &Folder, key: &str, found: Option<Found>| {
            let now = SystemTime::now();
            let record = compare(found, &was, now)?;
            if record.lifetime == Lifetime::Lapsed {
                is_free(folder, key)?;
            }
            match (ttl, record.value) {
                (Some(ttl), Ok(value)) => {
                    let entry = Entry {
                        value,
                        owner: record.owner,
                        revision: record.revision,
                        expires: Some(expiry(now, ttl)),
                    };
                    folder.write(key, entry, now)
                }
                (_, value) => Ok(Record { value, ..record }),
            }
        };
        self.change("renew", &key, touch).await
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        let was = was.clone();
        let key = was.key.clone();
        let delete = move |folder: &Folder, key: &str, found: Option<Found>| {
            compare(found, &was, SystemTime::now())?;
            folder.next_revision()?;
            folder.remove(key)
        };
        self.change("delete", &key, delete).await
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        let listing = match std::mem::replace(&mut *self.start(), Start::Followed) {
            Start::Listed(listing) => Some(listing),
            Start::Followed | Start::Unlisted => None,
        };
        folder_watch::stream(Arc::clone(&self.folder), since, listing)
    }
}

/// What is there at `now`, if it is still `was`. A person who edits a file leaves its revision as it was, so all of it counts.
fn compare(found: Option<Found>, was: &Record, now: SystemTime) -> Result<Record, RegistryError> {
    match found.map(|found| found.record(now)) {
        Some(record) if record.looks_like(was) => Ok(record),
        current => Err(conflict(current)),
    }
}

fn conflict(current: Option<Record>) -> RegistryError {
    RegistryError::Conflict { current: current.map(Box::new) }
}

/// Whether no other record has an address of `key`.
fn is_free(folder: &Folder, key: &str) -> Result<(), RegistryError> {
    match folder.overlapping(key, SystemTime::now())? {
        None => Ok(()),
        other => Err(conflict(other)),
    }
}

/// Writes a record whose addresses it takes with that.
fn put_free(folder: &Folder, key: &str, write: NewRecord) -> Result<Record, RegistryError> {
    is_free(folder, key)?;
    put(folder, key, write)
}

fn put(folder: &Folder, key: &str, write: NewRecord) -> Result<Record, RegistryError> {
    let now = SystemTime::now();
    let entry = Entry {
        value: write.value,
        owner: write.owner,
        revision: folder.next_revision()?,
        expires: write.ttl.map(|ttl| expiry(now, ttl)),
    };
    folder.write(key, entry, now)
}

/// How often the configuration is read while it is not there, or the kernel does not tell of it: a small file.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The same while the kernel tells of it. It does not of a link on the way that leads elsewhere.
const FOLLOWED_POLL_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
