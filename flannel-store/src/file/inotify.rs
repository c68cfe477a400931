//! Notices of the kernel about a folder's files.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::file::folder::is_hidden;

/// Open notices about one folder or file; dropping it ends them. The kernel keeps what was not read yet.
#[derive(Debug)]
pub(super) struct Notices {
    fd: OwnedFd,
}

/// The same, to wait for.
#[derive(Debug)]
pub(super) struct Following {
    fd: AsyncFd<OwnedFd>,
}

/// What the kernel told.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    /// Files that were written, moved, removed or given other permissions.
    pub(super) names: BTreeSet<OsString>,
    /// Notices were lost.
    pub(super) overflow: bool,
    /// The folder itself is not there any more, or somewhere else.
    pub(super) gone: bool,
}

impl Notices {
    /// Opens notices about the files in `folder`, and about `parent` being moved away.
    pub(super) fn open(folder: &Path, parent: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        let files = WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, folder, files | itself)?;
        inotify::add_watch(&fd, parent, itself)?;
        Ok(Self { fd })
    }

    /// Opens notices about one file being written, replaced, moved, removed or given other permissions.
    pub(super) fn of_file(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // Whoever replaces a file takes a link of it away, which is a change of its attributes.
        let changes = WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&fd, path, changes)?;
        Ok(Self { fd })
    }

    /// The same notices on this runtime.
    pub(super) fn follow(self) -> io::Result<Following> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that may change their descriptor; an OwnedFd keeps the one it has"
        )]
        let fd = AsyncFd::with_interest(self.fd, Interest::READABLE)?;
        Ok(Following { fd })
    }
}

impl Following {
    /// Waits for notices, and takes all there are.
    pub(super) async fn next(&mut self) -> io::Result<Noticed> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(noticed) = ready.try_io(|fd| read(fd.get_ref())) {
                return noticed;
            }
        }
    }
}

fn read(fd: &OwnedFd) -> io::Result<Noticed> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    let mut reader = Reader::new(fd, &mut buffer);
    let (mut noticed, mut any) = (Noticed::default(), false);
    loop {
        let notice = match reader.next() {
            Ok(notice) => notice,
            Err(Errno::AGAIN) if any => return Ok(noticed),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        any = true;
        let lost =
            ReadFlags::DELETE_SELF | ReadFlags::IGNORED | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
        noticed.gone |= notice.events().intersects(lost);
        noticed.overflow |= notice.events().contains(ReadFlags::QUEUE_OVERFLOW);
        if let Some(name) = notice.file_name() {
            let name = OsStr::from_bytes(name.to_bytes());
            if !is_hidden(name) {
                noticed.names.insert(name.into());
            }
        }
    }
}

/// Room for some hundred notices, which have 16 bytes and a name each.
const BUFFER_BYTES: usize = 16 * 1024;
