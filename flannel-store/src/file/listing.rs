//! Reading all lease files.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::SystemTime,
};

use flannel_core::NodeId;

use crate::{
    file::{
        files::Found,
        folder::{Folder, failed},
        inotify::Notices,
        lock,
    },
    registry::{RegistryError, Snapshot},
};

/// What was in the folder when it was listed last, and the notices of all that has happened since: they were opened before.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) notices: Notices,
    pub(super) seen: BTreeMap<Box<str>, Seen>,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// A number that differs when a watcher would see a difference.
    pub(super) fingerprint: u64,
    pub(super) expires: Option<SystemTime>,
}

impl Seen {
    pub(super) fn of(found: &Found) -> Self {
        let fingerprint = fingerprint(&found.value, found.owner.as_ref(), found.revision);
        Self { fingerprint, expires: found.expires }
    }
}

/// A number for what watchers see of a record.
pub(super) fn fingerprint(
    value: &Result<String, String>,
    owner: Option<&NodeId>,
    revision: u64,
) -> u64 {
    let mut hasher = DefaultHasher::new();
    (value, owner, revision).hash(&mut hasher);
    hasher.finish()
}

/// The leases of these files as they are at `now`.
pub(super) fn snapshot(found: Vec<Found>, now: SystemTime) -> Snapshot {
    let records: Vec<_> = found.into_iter().map(|found| found.record(now)).collect();
    let revision = records.iter().map(|record| record.revision).max();
    Snapshot { records, revision: revision.unwrap_or(0) }
}

/// Reads all files.
pub(super) async fn read_all(folder: &Arc<Folder>) -> Result<Vec<Found>, RegistryError> {
    let mut names = lock::shared(folder, "list the leases", Folder::names).await?;
    let half = if names.len() < MANY { names.len() } else { names.len() / 2 };
    let rest = names.split_off(half);
    let read = |names: Vec<OsString>| lock::blocking(folder, move |it| it.read_all(&names));
    let (mut found, rest) = futures::try_join!(read(names), async {
        if rest.is_empty() { Ok(Vec::new()) } else { read(rest).await }
    })?;
    found.extend(rest);
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

/// So many files are read by two threads at once, since opening them takes longer than all else of a listing; for fewer, a second
/// thread is not worth its memory.
const MANY: usize = 1024;

/// `EMFILE`, which is what `inotify_init` says when the user's instances are used up.
const TOO_MANY: i32 = rustix::io::Errno::MFILE.raw_os_error();
