//! Reading lease files: what blocks, and runs on a thread that may.

use std::{ffi::OsStr, io, os::fd::OwnedFd, path::Path, time::SystemTime};

use flannel_core::{MAX_LEASE_BYTES, NodeId};
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::{read, retry_on_intr},
};

use crate::{
    file::lease_file::Entry,
    registry::{Lifetime, Record},
};

/// The folder of the lease files, held open, so that each file costs its own name alone.
#[derive(Debug)]
pub(super) struct Files {
    folder: OwnedFd,
    buffer: Vec<u8>,
}

/// One file as it was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Found {
    pub(super) key: String,
    pub(super) value: Result<String, String>,
    pub(super) owner: Option<NodeId>,
    pub(super) revision: u64,
    pub(super) expires: Option<SystemTime>,
}

impl Files {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::open(folder, flags, Mode::empty())?, buffer: Vec::new() })
    }

    /// What is in one file, or why it is no lease file; `None` if it does not exist.
    pub(super) fn read(&mut self, name: &OsStr) -> Option<Found> {
        let entry = match self.fill(name) {
            Ok(()) => Entry::parse(&self.buffer).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        let key = name.to_string_lossy().into_owned();
        Some(match entry {
            Ok(entry) => found(key, entry),
            Err(reason) => {
                Found { key, value: Err(reason), owner: None, revision: 0, expires: None }
            }
        })
    }

    /// Reads one file into the buffer.
    fn fill(&mut self, name: &OsStr) -> io::Result<()> {
        // Without blocking, because opening a pipe would wait for somebody to write into it.
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, name, flags, Mode::empty())?;
        let status = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is not a regular file"));
        }
        let size = usize::try_from(status.st_size).unwrap_or(usize::MAX).min(LIMIT);
        // One byte more than there is shows that this is all, and one more than allowed that there is more.
        self.buffer.resize(size + 1, 0);
        let mut filled = 0;
        loop {
            let count = retry_on_intr(|| read(&file, &mut self.buffer[filled..]))?;
            filled += count;
            if filled > LIMIT {
                return Err(io::Error::other(format!("it has more than {LIMIT} bytes")));
            }
            if filled == self.buffer.len() {
                self.buffer.resize(LIMIT + 1, 0);
            } else if count == 0 || filled >= size {
                self.buffer.truncate(filled);
                return Ok(());
            }
        }
    }
}

impl Found {
    /// The record that it is at `now`.
    pub(super) fn record(self, now: SystemTime) -> Record {
        let Self { key, value, owner, revision, expires } = self;
        let lifetime = lifetime(expires, now);
        Record { key, value, owner, revision, created: 0, lifetime, token: 0 }
    }

    pub(super) fn has_lapsed(&self, now: SystemTime) -> bool {
        lifetime(self.expires, now) == Lifetime::Lapsed
    }
}

/// What a file at `key` says.
pub(super) fn found(key: String, entry: Entry) -> Found {
    let Entry { value, owner, revision, expires } = entry;
    Found { key, value: Ok(value), owner, revision, expires }
}

fn lifetime(expires: Option<SystemTime>, now: SystemTime) -> Lifetime {
    match expires {
        None => Lifetime::Unbounded,
        Some(expires) if expires <= now => Lifetime::Lapsed,
        Some(_) => Lifetime::Bounded,
    }
}

/// The longest file that is read, bytes: a value, and room for the second line, which is a node id of 253 characters, a number, a
/// time, and the white space of a person.
const LIMIT: usize = MAX_LEASE_BYTES + 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_cannot_be_read_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::create_dir(path.join("folder")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path.join("device")).unwrap();
        fs::write(path.join("long"), " ".repeat(LIMIT + 1)).unwrap();
        fs::write(path.join("longest"), " ".repeat(LIMIT)).unwrap();
        let mut files = Files::open(path).unwrap();
        for (name, reason) in [
            ("device", "it is not a regular file"),
            ("folder", "it is not a regular file"),
            ("long", "it has more than 69632 bytes"),
            ("longest", "it is empty"),
        ] {
            let found = files.read(OsStr::new(name)).unwrap();
            assert_eq!(found.value, Err(reason.into()), "{name}");
        }
        assert!(files.read(OsStr::new("nothing")).is_none());
    }

    #[test]
    fn a_file_whose_size_is_not_told_is_read_to_its_end() {
        // The kernel's own files have size 0.
        let mut files = Files::open(Path::new("/proc/self")).unwrap();
        files.fill(OsStr::new("status")).unwrap();
        assert!(files.buffer.starts_with(b"Name:") && files.buffer.ends_with(b"\n"));
    }
}
