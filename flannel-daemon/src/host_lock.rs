//! One node of a network on a host: two would take each other for themselves.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener as StdListener},
    },
    time::Duration,
};

use flannel_netlink::Namespace;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt},
    process::{Uid, geteuid},
};
use tokio::{
    net::UnixListener,
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::warn;

use crate::{DaemonError, StoreOptions};

/// The right to be the node of a network on this host. It ends with the process, however that ends.
///
/// A host is a network namespace, and so it is a socket of the namespace that nobody else can have: no file is left, and none
/// is needed. Anybody on the host can have such a name, so that only root and this user keep others from it.
#[derive(Debug)]
pub(crate) struct HostLock {
    /// The name; `None` where there is nothing to share.
    name: Option<String>,
    /// Has the name, and lets others see whose it is.
    _answering: JoinSet<()>,
}

impl HostLock {
    /// The name of a socket that is in the node's network namespace, if it has one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn nothing() -> Self {
        Self { name: None, _answering: JoinSet::new() }
    }
}

/// Waits until no other node of the network with this identity runs on this host: one that was told to stop takes its moment.
/// Without an identity nobody else sees the store.
pub(crate) async fn lock(
    identity: Option<&str>,
    store: &StoreOptions,
    namespace: &Namespace,
) -> Result<HostLock, DaemonError> {
    let Some(identity) = identity else { return Ok(HostLock::nothing()) };
    let name = name(identity);
    let until = Instant::now() + PATIENCE;
    loop {
        match hold(&name, namespace) {
            Ok(_answering) => return Ok(HostLock { name: Some(name), _answering }),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                return Err(DaemonError::HostLock(error));
            }
            Err(_) if Instant::now() < until => sleep(PAUSE).await,
            Err(_)
                if is_held_by_us(
                    namespace.run(|| holder(&name)).unwrap_or(Err(Errno::PERM)),
                    geteuid(),
                ) =>
            {
                return Err(DaemonError::AnotherNode { store: store.to_string() });
            }
            Err(_) => {
                warn!(name, "another user has the name by which nodes of one host see each other");
                return Ok(HostLock::nothing());
            }
        }
    }
}

/// What only one process of a host may be called.
fn name(identity: &str) -> String {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    format!("flannel-node/{:016x}", hasher.finish())
}

/// Takes the name, for as long as the tasks run.
fn hold(name: &str, namespace: &Namespace) -> io::Result<JoinSet<()>> {
    let address = SocketAddr::from_abstract_name(name)?;
    let bind = namespace.run(|| StdListener::bind_addr(&address));
    let listener = bind.map_err(io::Error::other)??;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut answering = JoinSet::new();
    // Whoever comes has seen all there is to see.
    answering.spawn(async move { while listener.accept().await.is_ok() {} });
    Ok(answering)
}

/// The user whose process has the name. A node answers, so nothing is waited for.
fn holder(name: &str) -> Result<Uid, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(sockopt::socket_peercred(&socket)?.uid)
}

/// Whether somebody has the name who may keep a process of the user `own` from being the node.
fn is_held_by_us(holder: Result<Uid, Errno>, own: Uid) -> bool {
    holder.is_ok_and(|user| user.is_root() || user == own)
}

/// How long a node waits for another to end: a stop takes a second at most.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use rustix::net::{bind, socket};

    use super::*;

    fn here() -> Namespace {
        Namespace::current().unwrap()
    }

    /// The identity of a network that no other test has.
    fn identity(folder: &tempfile::TempDir) -> String {
        folder.path().display().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_ends_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (identity, store) = (identity(&folder), StoreOptions::file(folder.path()));
        let here = here();
        let held = lock(Some(&identity), &store, &here).await.unwrap();
        let end = async {
            sleep(Duration::from_secs(1)).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(lock(Some(&identity), &store, &here), end);
        let _taken = taken.unwrap();
        let began = Instant::now();
        let error = lock(Some(&identity), &store, &here).await.unwrap_err();
        assert!(matches!(error, DaemonError::AnotherNode { .. }), "{error:?}");
        assert!(error.to_string().contains("stop it"), "{error}");
        assert!(began.elapsed() >= PATIENCE);
        lock(Some("another network"), &store, &here).await.unwrap();
        lock(None, &store, &here).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_has_the_name_keeps_no_node_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let (identity, store) = (identity(&folder), StoreOptions::file(folder.path()));
        let here = here();
        let name = name(&identity);
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        // It does not answer, as a node does.
        let squatter = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&squatter, &address).unwrap();
        assert!(hold(&name, &here).is_err());
        lock(Some(&identity), &store, &here).await.unwrap();
    }

    #[test]
    fn only_root_and_the_own_user_are_believed() {
        let [root, own, other] = [0, 1000, 1001].map(Uid::from_raw);
        assert!(is_held_by_us(Ok(root), own) && is_held_by_us(Ok(own), own));
        assert!(!is_held_by_us(Ok(other), own) && !is_held_by_us(Ok(other), root));
        assert!(!is_held_by_us(Err(Errno::CONNREFUSED), own));
    }
}
