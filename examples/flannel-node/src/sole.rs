//! One node of a network on a host: two would take each other for themselves.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::args::{StoreArg, StoreArgs};

/// The right to be the node of a network on this host. It ends with the process, however that ends.
///
/// A host is a network namespace, and so it is a socket of the namespace that nobody else can have: no file is left, and none
/// is needed.
#[derive(Debug)]
pub(crate) struct Sole {
    /// `None` where there is nothing to share.
    _name: Option<UnixDatagram>,
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
    let until = Instant::now() + PATIENCE;
    loop {
        match take(store) {
            Err(NotSole::InUse { .. }) if Instant::now() < until => sleep(PAUSE).await,
            taken => return taken,
        }
    }
}

fn take(store: &StoreArgs) -> Result<Sole, NotSole> {
    let mut hasher = DefaultHasher::new();
    match &store.store {
        // Nobody else sees what is in memory.
        Some(StoreArg::Memory) => return Ok(Sole { _name: None }),
        Some(StoreArg::File(path)) => {
            path.canonicalize().as_ref().unwrap_or(path).hash(&mut hasher)
        }
        None => (&store.etcd_endpoints, &store.etcd_prefix).hash(&mut hasher),
    }
    let name = format!("flannel-node/{:016x}", hasher.finish());
    let address = SocketAddr::from_abstract_name(name);
    match address.and_then(|address| UnixDatagram::bind_addr(&address)) {
        Ok(socket) => Ok(Sole { _name: Some(socket) }),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(NotSole::InUse { store: store.to_string() })
        }
        Err(source) => Err(NotSole::Io { source }),
    }
}

/// How long a node waits for another to end: a stop takes a second at most.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;

    fn store(args: &[&str]) -> StoreArgs {
        let line = ["flannel-node"].iter().chain(args).map(Into::into);
        Cli::read(line, |_| None).unwrap().node.store
    }

    #[test]
    fn one_network_has_one_node_and_others_are_not_disturbed() {
        let folder = tempfile::tempdir().unwrap();
        let file =
            |name: &str| store(&[&format!("--store=file:{}/{name}", folder.path().display())]);
        let held = take(&file("a")).unwrap();
        let _other = take(&file("b")).unwrap();
        let error = take(&file("a")).unwrap_err();
        assert!(matches!(error, NotSole::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains("stop it"), "{error}");
        drop(held);
        let _again = take(&file("a")).unwrap();
        let prefix = format!("--etcd-prefix={}", folder.path().display());
        let _etcd = take(&store(&[&prefix])).unwrap();
        assert!(take(&store(&[&prefix])).is_err());
        let _elsewhere =
            take(&store(&[&prefix, "--etcd-endpoints=http://192.0.2.1:2379"])).unwrap();
        let _memory = take(&store(&["--store=memory"])).unwrap();
        assert!(take(&store(&["--store=memory"])).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_ends_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&[&format!("--store=file:{}", folder.path().display())]);
        let held = take(&store).unwrap();
        let end = async {
            sleep(Duration::from_secs(1)).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(sole(&store), end);
        let _taken = taken.unwrap();
        let began = Instant::now();
        assert!(sole(&store).await.is_err());
        assert!(began.elapsed() >= PATIENCE);
    }
}
