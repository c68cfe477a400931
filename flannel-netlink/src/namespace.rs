use std::{
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, held open.
///
/// Clones share one file descriptor. An anonymous namespace ([`Namespace::create`]) vanishes when
/// the last clone, the last socket and the last process in it are gone. Two values are equal when
/// they are the same namespace of the kernel, however they were opened.
#[derive(Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
    device: u64,
    inode: u64,
}

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::Open`] when `/proc` is not mounted.
    pub fn current() -> Result<Self, NamespaceError> {
        Self::open(Path::new(OF_THIS_THREAD))
    }

    /// Makes a fresh anonymous namespace. Its loopback device is down, as the kernel makes it.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::Create`] without `CAP_SYS_ADMIN` in the current user namespace.
    pub fn create() -> Result<Self, NamespaceError> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NamespaceError::Create { source: errno.into() })?;
            Self::current()
        })
    }

    /// Opens a namespace by path, such as `/run/netns/blue` or `/proc/123/ns/net`.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::Open`] when the path cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NamespaceError> {
        let path = path.as_ref();
        let failed = |source| NamespaceError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), fd: Arc::new(file.into()) })
    }

    /// Runs `f` inside this namespace and returns its value: on a thread of its own, unless the calling
    /// thread is in it already.
    ///
    /// Sockets opened and child processes started by `f` stay in this namespace. The calling thread
    /// waits and keeps its own namespace. A panic of `f` continues in the caller.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::Enter`] without `CAP_SYS_ADMIN` over the namespace, unless the calling
    /// thread is in it; `f` has not run then.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        if Self::current().ok().as_ref() == Some(self) {
            return Ok(f());
        }
        on_own_thread(|| {
            setns(self, CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Enter {
                inode: self.inode,
                source: errno.into(),
            })?;
            Ok(f())
        })
    }

    /// The number that identifies the namespace while it exists, as in `readlink
    /// /proc/self/ns/net`.
    pub const fn inode(&self) -> u64 {
        self.inode
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace(net:[{}])", self.inode)
    }
}

impl Eq for Namespace {}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl std::hash::Hash for Namespace {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.device, self.inode).hash(state);
    }
}

/// Why a namespace could not be made, opened or entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// The kernel refused to make one.
    #[error("cannot create a network namespace (needs CAP_SYS_ADMIN or a user namespace)")]
    Create {
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel refused to move a thread into it.
    #[error("cannot enter network namespace net:[{inode}] (needs CAP_SYS_ADMIN over it)")]
    Enter {
        /// Which namespace, as [`Namespace::inode`].
        inode: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The path could not be opened.
    #[error("cannot open network namespace {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The thread that was to do it could not be started.
    #[error("cannot start a thread to enter a network namespace")]
    Thread {
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A namespace belongs to a thread, so the work runs on one that ends afterwards.
fn on_own_thread<T: Send>(
    f: impl FnOnce() -> Result<T, NamespaceError> + Send,
) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(|source| NamespaceError::Thread { source })?;
        thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

/// Not `/proc/self/ns/net`, which is the main thread's.
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";
