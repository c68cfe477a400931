//! Gives up what a node does not need, before anything else runs: capabilities, new privileges, and most of the file system.
//!
//! All of it is of the calling thread and those that it starts, so it has to come before the runtime. Programs stay allowed to be
//! run, because the firewall's iptables mode runs some; they have no more rights than the node.

mod capabilities;
mod files;

use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::{DaemonOptions, node_id, parent_folder, stores::StorePlan};

/// What a node has left.
#[derive(Debug)]
pub(crate) struct Rights {
    capabilities: String,
    /// What is in force about files.
    files: String,
}

/// Says in one line what is in force, and in another if that is too little for a node.
pub(crate) fn log(rights: Option<&Rights>) {
    if !capabilities::may_configure() {
        warn!(
            "CAP_NET_ADMIN is missing, so the kernel will refuse: start as root, or with that capability"
        );
    }
    let Some(Rights { capabilities, files }) = rights else {
        info!("no sandbox: --sandbox=off");
        return;
    };
    let none = rustix::thread::no_new_privs().unwrap_or_default();
    let new_privileges = if none { "none" } else { "possible" };
    info!(%capabilities, new_privileges, %files, "sandbox");
}

/// Gives up what the node does not need.
pub(crate) fn enter(options: &DaemonOptions, store: &StorePlan) -> Rights {
    let capabilities = capabilities::reduce();
    let written: Vec<_> = folders(options, store).iter().map(|folder| existing(folder)).collect();
    Rights { capabilities, files: files::restrict(&store.reads, &written) }
}

/// Gives up what only other backends than this one need, before the node does anything with the network.
pub(crate) fn settle(backend: &str) {
    if backend != "udp" {
        capabilities::settle();
    }
}

/// The folder itself, or the nearest above it that is there, where the node will make it: a rule needs something to be about.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.is_dir());
    found.unwrap_or_else(|| Path::new(".")).to_owned()
}

/// The folders that the node writes to.
fn folders(options: &DaemonOptions, store: &StorePlan) -> Vec<PathBuf> {
    let state = options.node_id.is_none().then(|| node_id::folder(options.state_dir.as_deref()));
    let state = state.map(Path::to_owned);
    let store = store.writes.iter().cloned();
    store.chain(parent_folder(&options.subnet_file)).chain(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StoreOptions, Stores, stores::StoreRequest};

    #[test]
    fn the_folders_that_a_node_writes_to_are_those_of_its_options() {
        let folders = |options: DaemonOptions| {
            let request = StoreRequest { options: &options.store, network: None, create: true };
            folders(&options, &Stores::default().plan(&request).unwrap())
        };
        let expected = ["/run/flannel", "/var/lib/flannel-node"].map(PathBuf::from);
        assert_eq!(folders(DaemonOptions::default()), expected);
        let named = DaemonOptions {
            store: StoreOptions::file("/s"),
            subnet_file: "/a/b.env".into(),
            state_dir: Some("/c".into()),
            ..DaemonOptions::default()
        };
        assert_eq!(folders(named), ["/s", "/a", "/c"].map(PathBuf::from));
        let node_id = Some("n1".parse().unwrap());
        let known = DaemonOptions { node_id, ..DaemonOptions::default() };
        assert_eq!(folders(known), ["/run/flannel"].map(PathBuf::from));
    }

    #[test]
    fn a_folder_that_is_to_be_made_stands_for_the_one_above_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(folder.path()), folder.path());
        assert_eq!(existing(&folder.path().join("run/flannel")), folder.path());
        assert_eq!(existing(Path::new("no-such-folder")), Path::new("."));
    }
}
