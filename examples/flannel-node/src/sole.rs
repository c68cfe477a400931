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

use crate::args::{StoreArg, StoreArgs};

/// The right to be the node of a network on this host. It ends with the process, however that ends.
///
/// A host is a network namespace, and so it is a socket of the namespace that nobody else can have: no file is left, and none
/// is needed. Anybody on the host can have such a name, so that only root and this user keep others from it.
#[derive(Debug)]
pub(crate) struct Sole {
    /// Has the name, and lets others see whose it is. Empty where there is nothing to share.
    _answering: JoinSet<()>,
}

/// Why a process may not be the node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotSole {
    #[error(
        "another node of this network ({store}) runs on this host: stop it; two nodes on one host need network namespaces of \
         their own"
    )]
    InUse { store: String },
    #[error("cannot find out whether another node of this network runs on this host")]
    Io {
        #[source]
        source: io::Error,
    },
}

/// Waits until no other node of the network in `store` runs on this host: one that was told to stop takes its moment.
pub(crate) async fn sole(store: &StoreArgs) -> Result<Sole, NotSole> {
    let Some(name) = name(store) else { return Ok(Sole { _answering: JoinSet::new() }) };
    let until = Instant::now() + PATIENCE;
    loop {
        match hold(&name) {
            Ok(_answering) => return Ok(Sole { _answering }),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                return Err(NotSole::Io { source: error });
            }
            Err(_) if Instant::now() < until => sleep(PAUSE).await,
            Err(_) if is_held_by_us(holder(&name), geteuid()) => {
                return Err(NotSole::InUse { store: store.to_string() });
            }
            Err(_) => {
                warn!(name, "another user has the name by which nodes of one host see each other");
                return Ok(Sole { _answering: JoinSet::new() });
            }
        }
    }
}

/// What only one process of a host may be called; `None` if nobody else sees the store.
fn name(store: &StoreArgs) -> Option<String> {
    let mut hasher = DefaultHasher::new();
    match &store.store {
        Some(StoreArg::Memory) => return None,
        Some(StoreArg::File(path)) => {
            path.canonicalize().as_ref().unwrap_or(path).hash(&mut hasher)
        }
        None => (&store.etcd_endpoints, &store.etcd_prefix).hash(&mut hasher),
    }
    Some(format!("flannel-node/{:016x}", hasher.finish()))
}

/// Takes the name, for as long as the tasks run.
fn hold(name: &str) -> io::Result<JoinSet<()>> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
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
    use crate::args::Cli;

    fn store(args: &[&str]) -> StoreArgs {
        let line = ["flannel-node"].iter().chain(args).map(Into::into);
        Cli::read(line, |_| None).unwrap().node.store
    }

    fn name_of(args: &[&str]) -> String {
        name(&store(args)).unwrap()
    }

    #[tokio::test]
    async fn one_network_has_one_node_and_others_are_not_disturbed() {
        let folder = tempfile::tempdir().unwrap();
        let file =
            |name: &str| name_of(&[&format!("--store=file:{}/{name}", folder.path().display())]);
        assert_eq!(file("a"), file("./a"));
        assert_ne!(file("a"), file("b"));
        let prefix = format!("--etcd-prefix={}", folder.path().display());
        assert_eq!(name_of(&[&prefix]), name_of(&[&prefix]));
        assert_ne!(
            name_of(&[&prefix]),
            name_of(&[&prefix, "--etcd-endpoints=http://192.0.2.1:2379"])
        );
        assert_eq!(name(&store(&["--store=memory"])), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_ends_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&[&format!("--store=file:{}", folder.path().display())]);
        let held = sole(&store).await.unwrap();
        let end = async {
            sleep(Duration::from_secs(1)).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(sole(&store), end);
        let _taken = taken.unwrap();
        let began = Instant::now();
        let error = sole(&store).await.unwrap_err();
        assert!(matches!(error, NotSole::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains("stop it"), "{error}");
        assert!(began.elapsed() >= PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_has_the_name_keeps_no_node_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&[&format!("--store=file:{}", folder.path().display())]);
        let address = SocketAddrUnix::new_abstract_name(name(&store).unwrap().as_bytes()).unwrap();
        // It does not answer, as a node does.
        let squatter = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&squatter, &address).unwrap();
        assert!(hold(&name(&store).unwrap()).is_err());
        sole(&store).await.unwrap();
    }

    #[test]
    fn only_root_and_the_own_user_are_believed() {
        let [root, own, other] = [0, 1000, 1001].map(Uid::from_raw);
        assert!(is_held_by_us(Ok(root), own) && is_held_by_us(Ok(own), own));
        assert!(!is_held_by_us(Ok(other), own) && !is_held_by_us(Ok(other), root));
        assert!(!is_held_by_us(Err(Errno::CONNREFUSED), own));
    }
}
