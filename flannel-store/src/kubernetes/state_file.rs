//! The last state that was known, for a start while the API server is away.

use std::{
    fs,
    io::{self, BufWriter},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use flannel_core::Lease;
use serde::{Deserialize, Serialize};

/// What a node needs to start without the API server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct LastState {
    /// The node whose state this is.
    pub(crate) node: String,
    /// The network's configuration, flannel's JSON.
    pub(crate) network: Option<String>,
    /// What an operator says that the node's addresses are.
    pub(crate) addresses: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    /// All leases, that of the node among them.
    pub(crate) leases: Vec<Arc<Lease>>,
}

/// Where it is kept.
#[derive(Clone, Debug)]
pub(crate) struct StateFile(pub(crate) PathBuf);

impl StateFile {
    /// What the node called `node` knew last, if that can be read.
    pub(crate) fn read(&self, node: &str) -> Option<LastState> {
        let text = fs::read(&self.0).ok()?;
        let state: LastState = serde_json::from_slice(&text).ok()?;
        (state.node == node).then_some(state)
    }

    /// Replaces it: whoever reads sees all of the old or all of the new.
    pub(crate) fn write(&self, state: &LastState) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let written = write_synced(&new, state).and_then(|()| fs::rename(&new, &self.0));
        if written.is_err() {
            // It is of no use to anybody.
            fs::remove_file(&new).ok();
        }
        written
    }
}

fn write_synced(path: &Path, state: &LastState) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // Piece by piece: it has megabytes in a large cluster.
    let mut buffered = BufWriter::new(file);
    serde_json::to_writer(&mut buffered, state)?;
    buffered.into_inner()?.sync_data()
}

#[cfg(test)]
mod tests {
    use flannel_core::LeaseAttrs;

    use super::*;

    #[test]
    fn a_state_is_read_by_its_own_node_only_and_garbage_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile(folder.path().join("kubernetes.json"));
        assert_eq!(file.read("n1"), None);
        let lease = Lease::new("10.244.1.0-24".parse().unwrap(), LeaseAttrs::default());
        let state =
            LastState { node: "n1".into(), leases: vec![lease.into()], ..LastState::default() };
        file.write(&state).unwrap();
        assert_eq!((file.read("n1"), file.read("n2")), (Some(state), None));
        fs::write(&file.0, "{").unwrap();
        assert_eq!(file.read("n1"), None);
        assert!(StateFile("/no/such/folder/x".into()).write(&LastState::default()).is_err());
    }
}
