//! Follows the path between two pod addresses through this host, and names what is broken first.

mod ask;
mod collect;
mod facts;
mod walk;

use std::{net::IpAddr, path::PathBuf};

use flannel_netlink::{KernelError, Namespace, NamespaceError, OpenError};

use crate::{DaemonHandle, InvalidOptions, StoreOptions, Stores};

pub(crate) use facts::Tunnel;
pub use walk::{Broken, Explanation, Passed};

/// Which path to explain.
#[derive(Clone, Debug)]
pub struct ExplainOptions {
    /// The address of a pod.
    pub source: IpAddr,
    /// The address of another pod. One of the two has to be on this host.
    pub destination: IpAddr,
    /// The file in which this host's node says which subnet it has.
    pub subnet_file: PathBuf,
    /// Where the leases are known.
    pub leases: LeaseSource,
    /// The network namespace of the host; `None` for the one that this process is in.
    pub namespace: Option<Namespace>,
}

/// Where the leases are known.
#[derive(Clone, Debug)]
pub enum LeaseSource {
    /// By the node that runs in this process.
    Node(DaemonHandle),
    /// In this store.
    Store(Box<StoreOptions>),
}

/// Why a path cannot be explained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The addresses cannot be the ends of one path.
    #[error(transparent)]
    InvalidOptions(#[from] InvalidOptions),
    /// The kernel does not list something.
    #[error("cannot list {what}")]
    List {
        /// Objects of the kernel.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: KernelError,
    },
    /// Our network namespace cannot be opened.
    #[error("cannot open our own network namespace")]
    Namespace(#[from] NamespaceError),
    /// The kernel cannot be asked.
    #[error("cannot ask the kernel of this host")]
    Netlink(#[from] OpenError),
}

/// Explains the path between two pods. Writes nothing; sends some datagrams to the other side if nothing here is broken.
///
/// # Errors
///
/// [`ExplainError`] if this host cannot be looked at. A store that does not answer is a part of the explanation.
pub async fn explain(
    options: &ExplainOptions,
    stores: &Stores,
) -> Result<Explanation, ExplainError> {
    if options.source.is_ipv4() != options.destination.is_ipv4() {
        let reason = format!(
            "{} and {} are of two address families: give both addresses of one",
            options.source, options.destination
        );
        return Err(InvalidOptions::new(reason).into());
    }
    match collect::collect(options, stores).await? {
        Ok(mut facts) => {
            let explanation = walk::walk(&facts);
            if explanation.broken.is_some() {
                return Ok(explanation);
            }
            collect::ask_peer(&mut facts, options).await?;
            Ok(walk::walk(&facts))
        }
        Err(broken) => Ok(Explanation::broken_at_once(options.source, options.destination, broken)),
    }
}

impl ExplainOptions {
    fn namespace(&self) -> Result<Namespace, NamespaceError> {
        self.namespace.clone().map_or_else(Namespace::current, Ok)
    }
}
