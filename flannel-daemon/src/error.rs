//! Why a daemon ends, or does not begin.

use std::{error::Error, fmt, io, net::SocketAddr, path::PathBuf};

use flannel_core::{BackendError, NodeError, StoreError};
use flannel_netlink::NamespaceError;
use flannel_store::RegistryError;

/// Something in the options that whoever started the program has to correct. Nothing was touched.
///
/// [`fmt::Display`] names the reason and its causes.
#[derive(Debug)]
pub struct InvalidOptions(Box<dyn Error + Send + Sync>);

impl InvalidOptions {
    /// Wraps the reason.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for InvalidOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(&*self.0))
    }
}

impl Error for InvalidOptions {}

/// What somebody has to correct before a daemon can go on. What a retry can fix is retried and is no such error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// Another node of the same network has the host.
    #[error(
        "another node of this network ({store}) runs on this host: stop it; two nodes on one host need network namespaces of \
         their own"
    )]
    AnotherNode {
        /// The store that both use.
        store: String,
    },
    /// The backend cannot find the uplink, or work with it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The network's configuration cannot be stored.
    #[error("cannot store the network config")]
    Config(#[source] RegistryError),
    /// Nothing can be served at the address for health checks.
    #[error(
        "cannot listen on {address} for health checks: give a free --healthz-port or another --healthz-ip"
    )]
    HealthServer {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It cannot be told whether another node of the network runs on this host.
    #[error("cannot find out whether another node of this network runs on this host")]
    HostLock(#[source] io::Error),
    /// The options cannot be used.
    #[error(transparent)]
    InvalidOptions(#[from] InvalidOptions),
    /// The process's own network namespace cannot be opened.
    #[error("cannot open our own network namespace")]
    Namespace(#[source] NamespaceError),
    /// The node has no name, and no address to go by.
    #[error("the uplink has no address: give it one, or name the node with --node-id")]
    NoAddress,
    /// The node has ended.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The store cannot be opened.
    #[error(transparent)]
    OpenStore(#[from] OpenStoreError),
    /// The network's configuration in the store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// The store's options cannot be used.
    #[error(transparent)]
    InvalidOptions(#[from] InvalidOptions),
    /// The store chooses subnets by itself.
    #[error("the store {store} keeps no leases that can be listed: use the tools of its own")]
    NoRegistry {
        /// The store.
        store: String,
    },
    /// The store refuses, or is not there.
    #[error("cannot open the store {store}")]
    Open {
        /// The store.
        store: String,
        /// Its reason.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A file that cannot be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
#[non_exhaustive]
pub struct FileError {
    /// What was attempted: `read`, `write`, `remove` or `listen on`.
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
