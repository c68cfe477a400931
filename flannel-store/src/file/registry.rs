//! A folder as a key-value engine.

use std::{
    ffi::OsStr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{
    file::{
        entry::{Entry, expiry},
        folder::{Folder, Found},
        lock, watch,
    },
    registry::{Change, ConfigText, Lifetime, Record, Registry, RegistryError, Snapshot, Write},
};

/// The folder behind a [`FileStore`](crate::FileStore), whose documentation says what is in it.
#[derive(Clone, Debug)]
pub struct FileRegistry {
    folder: Arc<Folder>,
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
        Ok(Self { folder })
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
            let found = folder.read(OsStr::new(&owned), SystemTime::now());
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

    async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
        let (was, text) = (was.text.clone(), text.to_owned());
        let set = move |folder: &Folder| folder.set_config(was.as_deref(), &text);
        lock::exclusive(&self.folder, "write the network config", set).await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        let names = lock::shared(&self.folder, "list the leases", Folder::names).await?;
        let read = move |folder: &Folder| Ok(folder.read_all(&names, SystemTime::now()));
        let found = lock::blocking(&self.folder, read).await?;
        let records: Vec<_> = found.into_iter().map(|found| found.record).collect();
        let revision = records.iter().map(|record| record.revision).max();
        Ok(Snapshot { records, revision: revision.unwrap_or(0) })
    }

    async fn create(&self, key: &str, write: &Write) -> Result<Record, RegistryError> {
        let write = write.clone();
        let create = move |folder: &Folder, key: &str, found: Option<Found>| {
            let live = found.filter(|found| found.record.lifetime != Lifetime::Lapsed);
            match live {
                Some(found) => Err(conflict(Some(found))),
                None => put(folder, key, write),
            }
        };
        self.change("create", key, create).await
    }

    async fn update(&self, was: &Record, write: &Write) -> Result<Record, RegistryError> {
        let (was, write) = (was.clone(), write.clone());
        let key = was.key.clone();
        let update = move |folder: &Folder, key: &str, found: Option<Found>| {
            compare(found, &was)?;
            put(folder, key, write)
        };
        self.change("update", &key, update).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        let was = was.clone();
        let key = was.key.clone();
        let touch = move |folder: &Folder, key: &str, found: Option<Found>| {
            let (found, now) = (compare(found, &was)?, SystemTime::now());
            match (ttl, found.record.value) {
                (Some(ttl), Ok(value)) => {
                    let entry = Entry {
                        value,
                        owner: found.record.owner,
                        revision: found.record.revision,
                        expires: Some(expiry(now, ttl)),
                    };
                    folder.write(key, entry, now)
                }
                (_, value) => Ok(Record { value, ..found.record }),
            }
        };
        self.change("renew", &key, touch).await
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        let was = was.clone();
        let key = was.key.clone();
        let delete = move |folder: &Folder, key: &str, found: Option<Found>| {
            compare(found, &was)?;
            folder.next_revision()?;
            folder.remove(key)
        };
        self.change("delete", &key, delete).await
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        watch::stream(Arc::clone(&self.folder), since)
    }
}

/// What is there, if it is still `was`. A person who edits a file leaves its revision as it was, so all of it counts.
fn compare(found: Option<Found>, was: &Record) -> Result<Found, RegistryError> {
    match found {
        Some(found) if found.record.looks_like(was) => Ok(found),
        found => Err(conflict(found)),
    }
}

fn conflict(found: Option<Found>) -> RegistryError {
    RegistryError::Conflict { current: found.map(|found| Box::new(found.record)) }
}

fn put(folder: &Folder, key: &str, write: Write) -> Result<Record, RegistryError> {
    let now = SystemTime::now();
    let entry = Entry {
        value: write.value,
        owner: write.owner,
        revision: folder.next_revision()?,
        expires: write.ttl.map(|ttl| expiry(now, ttl)),
    };
    folder.write(key, entry, now)
}
