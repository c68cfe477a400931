//! Waiting for files to appear.

use std::{
    ffi::{OsStr, OsString},
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Hears of files in one folder that are complete: written and closed, or moved there.
#[derive(Debug)]
pub(crate) struct Arrivals {
    fd: AsyncFd<Source>,
    folder: PathBuf,
    waiting: Vec<OsString>,
}

#[derive(Debug)]
struct Source(Inotify);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Arrivals {
    /// Hears of everything that arrives in `folder` from now on.
    pub(crate) fn watch(folder: &Path) -> Result<Self> {
        let context = || format!("cannot watch {}", folder.display());
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).with_context(context)?;
        let complete = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(folder, complete).with_context(context)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that may change their descriptor; an Inotify keeps the one it has"
        )]
        let fd =
            AsyncFd::with_interest(Source(inotify), Interest::READABLE).with_context(context)?;
        Ok(Self { fd, folder: folder.into(), waiting: Vec::new() })
    }

    /// Waits for a file of this name, which may have come since the last call.
    pub(crate) async fn file(&mut self, name: &OsStr) -> Result<()> {
        while self.any().await? != name {}
        Ok(())
    }

    /// The name of the next file.
    pub(crate) async fn any(&mut self) -> Result<OsString> {
        loop {
            if let Some(name) = self.waiting.pop() {
                return Ok(name);
            }
            let context = || format!("cannot watch {}", self.folder.display());
            let mut ready = self.fd.readable().await.with_context(context)?;
            match ready.get_inner().0.read_events() {
                Ok(events) => {
                    self.waiting = events.into_iter().filter_map(|event| event.name).collect();
                    self.waiting.reverse();
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error).with_context(context),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_file_is_heard_of_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let mut arrivals = Arrivals::watch(folder.path()).unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("a"), "1").unwrap();
        fs::write(path(".b"), "2").unwrap();
        fs::rename(path(".b"), path("b")).unwrap();
        for name in ["a", ".b", "b"] {
            let arrived = timeout(Duration::from_secs(5), arrivals.any()).await;
            assert_eq!(arrived.unwrap().unwrap(), name);
        }
        let error = Arrivals::watch(&path("none")).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot watch {}", path("none").display()));
    }
}
