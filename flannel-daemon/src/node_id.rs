//! The name that this machine keeps: a file in the state folder.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use flannel_core::{InvalidNodeId, NodeId};
use rustix::fs::statfs;
use tempfile::Builder;

/// The node id of a state folder, while no other process of this machine uses it.
#[derive(Debug)]
pub(crate) struct KeptId {
    pub(crate) id: NodeId,
    /// Locked until the process ends, however it ends.
    _lock: File,
}

/// Why a state folder names no node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoKeptId {
    #[error("{} is used by another process of this machine: give each its own --state-dir or --node-id", path.display())]
    InUse { path: PathBuf },
    #[error("{} holds no node id: write one, or remove the file", path.display())]
    Invalid {
        path: PathBuf,
        #[source]
        source: InvalidNodeId,
    },
    #[error("cannot keep a node id in {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not on a disk, a node id in it would be another after a restart: give a --state-dir that stays", path.display())]
    Volatile { path: PathBuf },
}

/// The state folder: the one that was named, or the default.
pub(crate) fn folder(named: Option<&Path>) -> &Path {
    named.unwrap_or_else(|| Path::new(STATE_DIR))
}

/// The node id of a state folder, if there is one already.
pub(crate) fn known(named: Option<&Path>) -> Option<NodeId> {
    fs::read_to_string(folder(named).join(FILE)).ok()?.trim().parse().ok()
}

/// The node id of `folder`, or of the default folder; made if there is none yet.
///
/// A folder that was named by a person is taken as it is. The default one is used only if it is on a disk: in a container or
/// after a reboot a node would have another name than before, and lose its lease to itself.
pub(crate) fn keep(folder: Option<&Path>) -> Result<KeptId, NoKeptId> {
    let path = self::folder(folder).join(FILE);
    let failed = |source| NoKeptId::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if folder.is_none() && !is_on_disk(&path).map_err(failed)? {
                return Err(NoKeptId::Volatile { path });
            }
            create(&path).map_err(failed)?;
            File::open(&path).map_err(failed)?
        }
        opened => opened.map_err(failed)?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(NoKeptId::InUse { path }),
        Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    let mut text = String::new();
    // More than any id has, and too little to matter.
    (&file).take(4096).read_to_string(&mut text).map_err(failed)?;
    match text.trim().parse() {
        Ok(id) => Ok(KeptId { id, _lock: file }),
        Err(source) => Err(NoKeptId::Invalid { path, source }),
    }
}

/// Puts a new id at `path`, unless somebody else is faster. It is there as a whole, and after a power failure, or not at all.
fn create(path: &Path) -> io::Result<()> {
    let folder = path.parent().expect("the file is in a folder");
    fs::create_dir_all(folder)?;
    let mut file = Builder::new().prefix(".node-id-").tempfile_in(folder)?;
    writeln!(file, "node-{:016x}", random()?)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        _ => File::open(folder)?.sync_all(),
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Whether the nearest folder that exists is on a file system that outlives reboots and containers.
fn is_on_disk(path: &Path) -> io::Result<bool> {
    let folder = path.ancestors().find(|folder| folder.is_dir()).unwrap_or_else(|| Path::new("/"));
    let kind = statfs(folder)?.f_type;
    Ok(!VOLATILE.iter().any(|volatile| i128::from(kind) == i128::from(*volatile)))
}

/// Where the id is kept unless `--state-dir` says otherwise. Not beside `subnet.env`: that folder is empty after a reboot.
const STATE_DIR: &str = "/var/lib/flannel-node";

const FILE: &str = "node-id";

/// `OVERLAYFS_SUPER_MAGIC`, `RAMFS_MAGIC` and `TMPFS_MAGIC` in linux/magic.h: containers, and what is in memory.
const VOLATILE: [u32; 3] = [0x794c_7630, 0x8584_58f6, 0x0102_1994];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("lib/flannel-node");
        let first = keep(Some(&state)).unwrap().id;
        assert!(first.as_str().starts_with("node-") && first.address().is_none(), "{first}");
        assert_eq!(keep(Some(&state)).unwrap().id, first);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
        let other = keep(Some(&folder.path().join("other"))).unwrap().id;
        assert_ne!(other, first);
    }

    #[test]
    fn an_id_that_somebody_wrote_is_used() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), " worker-7\n\n").unwrap();
        assert_eq!(keep(Some(folder.path())).unwrap().id.as_str(), "worker-7");
    }

    #[test]
    fn two_processes_do_not_share_an_id() {
        let folder = tempfile::tempdir().unwrap();
        let kept = keep(Some(folder.path())).unwrap();
        let error = keep(Some(folder.path())).unwrap_err();
        assert!(matches!(error, NoKeptId::InUse { .. }), "{error:?}");
        drop(kept);
        keep(Some(folder.path())).unwrap();
    }

    #[test]
    fn racing_first_starts_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let ids: Vec<_> = (0..8)
            .map(|_| {
                create(&path).unwrap();
                fs::read_to_string(&path).unwrap()
            })
            .collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn what_cannot_be_kept_says_why() {
        let folder = tempfile::tempdir().unwrap();
        for garbage in [&b""[..], b"two words", &b"x".repeat(9000)] {
            fs::write(folder.path().join(FILE), garbage).unwrap();
            let error = keep(Some(folder.path())).unwrap_err();
            assert!(matches!(error, NoKeptId::Invalid { .. }), "{error:?}");
        }
        fs::write(folder.path().join(FILE), b"\xff\xfe").unwrap();
        let error = keep(Some(folder.path())).unwrap_err();
        assert!(matches!(error, NoKeptId::Io { .. }), "{error:?}");
        let error = keep(Some(Path::new("/proc/no"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot keep a node id in /proc/no/node-id");
    }

    #[test]
    fn memory_is_no_disk() {
        assert!(!is_on_disk(Path::new("/dev/shm/flannel-node/node-id")).unwrap());
    }
}
