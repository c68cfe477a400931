//! The folder's files: what blocks, and runs on a thread that may.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use flannel_core::{NetworkConfig, Subnet};

use crate::{
    file::{
        files::{Files, Found, found},
        lease_file::Entry,
    },
    registry::{Lifetime, Record, RegistryError},
};

/// The paths of one network's folder.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.root.join("config")
    }

    pub(super) fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn subnets_path(&self) -> PathBuf {
        self.root.join("subnets")
    }

    /// Makes the folder if it is not there.
    pub(super) fn create(&self) -> Result<(), RegistryError> {
        let path = self.subnets_path();
        let made = DirBuilder::new().mode(0o755).recursive(true).create(&path);
        made.map_err(failed("make the folder", &path))
    }

    pub(super) fn config(&self) -> Result<Option<String>, RegistryError> {
        let path = self.config_path();
        match fs::read(&path) {
            // What is not UTF-8 is not JSON either, and the parser says so better.
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Writes the configuration if there is none, else returns what is there. Under the lock.
    pub(super) fn init_config(
        &self,
        config: &NetworkConfig,
    ) -> Result<Option<String>, RegistryError> {
        let present = self.config()?;
        if present.is_none() {
            let json =
                serde_json::to_string_pretty(config).expect("a network config is valid JSON");
            self.replace(&self.config_path(), &format!("{json}\n"))?;
            self.sync_folder(&self.root)?;
        }
        Ok(present)
    }

    /// Replaces the configuration if it is still `was`. Under the lock.
    pub(super) fn set_config(&self, was: Option<&str>, text: &str) -> Result<(), RegistryError> {
        if self.config()?.as_deref() != was {
            return Err(RegistryError::ConfigConflict);
        }
        self.replace(&self.config_path(), text)?;
        self.sync_folder(&self.root)
    }

    /// The names of all lease files. Under the lock, because a listing may miss a file that is replaced meanwhile.
    pub(super) fn names(&self) -> Result<Vec<OsString>, RegistryError> {
        let path = self.subnets_path();
        let list = || -> io::Result<Vec<OsString>> {
            let names = fs::read_dir(&path)?.map(|file| Ok(file?.file_name()));
            names.filter(|name| name.as_ref().map_or(true, |name| !is_hidden(name))).collect()
        };
        list().map_err(failed("list", &path))
    }

    /// The lease files, to read them.
    pub(super) fn files(&self) -> Result<Files, RegistryError> {
        let path = self.subnets_path();
        Files::open(&path).map_err(failed("open", &path))
    }

    /// What is in one lease file, or why it is none; `None` if it does not exist.
    pub(super) fn read(&self, name: &OsStr) -> Result<Option<Found>, RegistryError> {
        Ok(self.files()?.read(name))
    }

    /// All lease files of these names that still exist.
    pub(super) fn read_all(&self, names: &[OsString]) -> Result<Vec<Found>, RegistryError> {
        let mut files = self.files()?;
        Ok(names.iter().filter_map(|name| files.read(name)).collect())
    }

    /// A record that shares an address with `key` at `now`. Those whose time is over are removed, because they have lost the
    /// address with what is written next. Under the lock.
    pub(super) fn overlapping(
        &self,
        key: &str,
        now: SystemTime,
    ) -> Result<Option<Record>, RegistryError> {
        let shares = |name: &OsString| {
            let name = name.to_string_lossy();
            let subnet = Subnet::of_any_spelling(&name).zip(Subnet::of_any_spelling(key));
            name != key && subnet.is_some_and(|(one, other)| one.overlaps(&other))
        };
        for name in self.names()?.into_iter().filter(shares) {
            match self.read(&name)?.map(|found| found.record(now)) {
                Some(record) if record.lifetime == Lifetime::Lapsed => self.remove(&record.key)?,
                Some(record) => return Ok(Some(record)),
                None => {}
            }
        }
        Ok(None)
    }

    /// Writes one lease file and returns it as it will be read. Under the lock.
    pub(super) fn write(
        &self,
        key: &str,
        entry: Entry,
        now: SystemTime,
    ) -> Result<Record, RegistryError> {
        let folder = self.subnets_path();
        self.replace(&folder.join(key), &entry.print())?;
        self.sync_folder(&folder)?;
        Ok(found(key.into(), entry).record(now))
    }

    /// Removes one lease file. Under the lock.
    pub(super) fn remove(&self, key: &str) -> Result<(), RegistryError> {
        let folder = self.subnets_path();
        let path = folder.join(key);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        self.sync_folder(&folder)
    }

    /// The number of the last write. Under the lock.
    fn revision(&self) -> Result<u64, RegistryError> {
        let path = self.revision_path();
        match fs::read_to_string(&path).map(|text| text.trim().parse()) {
            Ok(Ok(revision)) => return Ok(revision),
            Ok(Err(_)) => {}
            Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) => {}
            Err(error) => return Err(failed("read", &path)(error)),
        }
        let all = self.read_all(&self.names()?)?;
        Ok(all.iter().map(|found| found.revision).max().unwrap_or(0))
    }

    /// The number for the next write, used up. Under the lock.
    pub(super) fn next_revision(&self) -> Result<u64, RegistryError> {
        let next = self.revision()?.saturating_add(1);
        // Revisions tell writes apart while processes run. They need not survive the machine, so this is not flushed.
        let path = self.revision_path();
        let (temporary, _) = self.temporary(&format!("{next}\n"))?;
        fs::rename(&temporary, &path).map_err(failed("write", &path))?;
        Ok(next)
    }

    /// Whether a lease could be written, as far as the disk's space goes. Under the lock.
    pub(super) fn has_room(&self) -> Result<bool, RegistryError> {
        let path = self.temporary_path();
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(&[b' '; 4096])?;
            file.sync_all()
        };
        let full = matches!(
            write().map_err(|error| error.kind()),
            Err(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        );
        if !full {
            self.clean()?;
        }
        Ok(!full)
    }

    /// Removes what a process left that died while it wrote. Under the lock.
    pub(super) fn clean(&self) -> Result<(), RegistryError> {
        let path = self.temporary_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn revision_path(&self) -> PathBuf {
        self.root.join("revision")
    }

    /// One name is enough, because only the holder of the lock writes. It is outside of the leases, so that only the
    /// complete file shows up there.
    fn temporary_path(&self) -> PathBuf {
        self.root.join(".write")
    }

    fn temporary(&self, text: &str) -> Result<(PathBuf, File), RegistryError> {
        let path = self.temporary_path();
        let write = || -> io::Result<File> {
            let mut file = File::create(&path)?;
            file.write_all(text.as_bytes())?;
            Ok(file)
        };
        let file = write().map_err(failed("write", &path))?;
        Ok((path, file))
    }

    fn replace(&self, path: &Path, text: &str) -> Result<(), RegistryError> {
        let (temporary, file) = self.temporary(text)?;
        let replaced = file.sync_all().and_then(|()| fs::rename(&temporary, path));
        replaced.map_err(failed("write", path))
    }

    fn sync_folder(&self, path: &Path) -> Result<(), RegistryError> {
        let synced = File::open(path).and_then(|folder| folder.sync_all());
        synced.map_err(failed("flush the folder", path))
    }
}

pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// The error of an operation on a path.
pub(super) fn failed(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let operation = format!("{verb} {}", path.display());
    move |source| match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            RegistryError::Denied { operation, source: source.into() }
        }
        _ => RegistryError::Unavailable { operation, source: source.into() },
    }
}
