use std::{error::Error, fmt, io};

use nix::libc;

/// What the kernel said about one request.
///
/// The text is the kernel's extended acknowledgement when there is one, for example
/// `Nexthop has invalid gateway`, which says far more than the error number alone.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct KernelError {
    /// The positive error number, as in `errno(3)`.
    pub errno: i32,
    /// The kernel's own explanation, or ours when no answer came.
    pub message: Option<String>,
}

impl KernelError {
    /// An error with this number and no explanation.
    pub const fn new(errno: i32) -> Self {
        Self { errno, message: None }
    }

    pub(crate) fn with_message(errno: i32, message: impl Into<String>) -> Self {
        Self { errno, message: Some(message.into()) }
    }

    pub(crate) fn from_io(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::new(errno),
            None => Self::with_message(libc::EIO, error.to_string()),
        }
    }

    /// The object is already there.
    pub const fn exists(&self) -> bool {
        self.errno == libc::EEXIST
    }

    /// The object to delete or alter is not there. The kernel has several numbers for this, one per
    /// kind of object.
    pub const fn not_found(&self) -> bool {
        matches!(self.errno, libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)
    }

    /// The kernel does not know this kind of object or attribute, or was built without it.
    pub const fn unsupported(&self) -> bool {
        matches!(self.errno, libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
    }

    /// The process lacks `CAP_NET_ADMIN` in the namespace.
    pub const fn not_permitted(&self) -> bool {
        matches!(self.errno, libc::EPERM | libc::EACCES)
    }

    /// The gateway is not reachable as asked, or the device is down.
    pub const fn unreachable(&self) -> bool {
        matches!(self.errno, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN)
    }

    /// The request itself is not acceptable: no later attempt of the same will do better while all else stays as it is.
    pub const fn invalid(&self) -> bool {
        matches!(self.errno, libc::EINVAL | libc::ERANGE)
    }

    /// What the request was made for was changed since, so nothing was done.
    pub const fn outdated(&self) -> bool {
        self.errno == libc::ERESTART
    }

    /// No answer came, so the kernel may or may not have done it.
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self.errno, libc::ENOBUFS | libc::ETIMEDOUT)
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = io::Error::from_raw_os_error(self.errno);
        match &self.message {
            Some(message) => write!(f, "{number}: {message}"),
            None => write!(f, "{number}"),
        }
    }
}

impl Error for KernelError {}
