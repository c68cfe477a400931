//! All lease files as they were read once, kept true by the kernel's notices.

use std::{
    ffi::OsString,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::{
    file::{
        folder::{Folder, failed},
        inotify::Notices,
        lock,
        pile::Pile,
    },
    registry::{RegistryError, Snapshot},
};

/// What is in the folder, and what tells of changes from then on.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) notices: Notices,
    pub(super) found: Pile,
    read: Instant,
}

impl Listing {
    /// Reads all files. The notices were opened before: what happens in between is in both.
    pub(super) async fn read(
        folder: &Arc<Folder>,
        notices: Notices,
    ) -> Result<Self, RegistryError> {
        let read = Instant::now();
        Ok(Self { notices, found: read_all(folder).await?, read })
    }

    /// Takes in what happened meanwhile, and returns the listing; `None` if all has to be read again.
    ///
    /// A change is in the notices as soon as whoever made it goes on.
    pub(super) async fn caught_up(mut self, folder: &Arc<Folder>) -> Option<Self> {
        let noticed = self.notices.waiting().ok()?;
        if noticed.gone || noticed.overflow || self.read.elapsed() > LONGEST_KEPT {
            return None;
        }
        if !noticed.names.is_empty() {
            let changed: Vec<OsString> = noticed.names.into_iter().collect();
            let keys: Vec<_> =
                changed.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            self.found.remove(&keys);
            let read = move |folder: &Folder| folder.read_all(&changed);
            for found in lock::blocking(folder, read).await.ok()?.iter() {
                self.found.push(&found);
            }
        }
        Some(self)
    }

    /// The leases as they are at `now`.
    pub(super) fn snapshot(&self, now: SystemTime) -> Snapshot {
        snapshot(&self.found, now)
    }
}

/// The leases of these files as they are at `now`.
pub(super) fn snapshot(found: &Pile, now: SystemTime) -> Snapshot {
    let mut records = Vec::with_capacity(found.len());
    records.extend(found.iter().map(|found| found.record(now)));
    let revision = records.iter().map(|record| record.revision).max();
    Snapshot { records, revision: revision.unwrap_or(0) }
}

/// Reads all files.
pub(super) async fn read_all(folder: &Arc<Folder>) -> Result<Pile, RegistryError> {
    let mut names = lock::shared(folder, "list the leases", Folder::names).await?;
    let half = if names.len() < MANY { names.len() } else { names.len() / 2 };
    let rest = names.split_off(half);
    let read = |names: Vec<OsString>| lock::blocking(folder, move |it| it.read_all(&names));
    if rest.is_empty() {
        return read(names).await;
    }
    let (mut found, rest) = futures::try_join!(read(names), read(rest))?;
    found.append(rest);
    Ok(found)
}

/// Opens notices about the folder. That does not wait for the disk for long.
pub(super) fn open(folder: &Folder) -> Result<Notices, RegistryError> {
    let path = folder.subnets_path();
    Notices::open(&path, folder.root()).map_err(|error| match error.raw_os_error() {
        Some(TOO_MANY) => failed("follow", &path)(std::io::Error::other(
            "this user has too many inotify instances, raise fs.inotify.max_user_instances",
        )),
        _ => failed("follow", &path)(error),
    })
}

/// A listing that nobody follows is read anew after a minute: a node that starts needs it within seconds, and a program that only lists
/// now and then should not rely on notices.
const LONGEST_KEPT: Duration = Duration::from_secs(60);

/// So many files are read by two threads at once, since opening them takes longer than all else of a listing; for fewer, a second
/// thread is not worth its memory.
const MANY: usize = 1024;

/// `EMFILE`, which is what `inotify_init` says when the user's instances are used up.
const TOO_MANY: i32 = rustix::io::Errno::MFILE.raw_os_error();
