//! Gives up what a node does not need, before anything else runs: capabilities, new privileges, and most of the file system.
//!
//! All of it is of the calling thread and those that it starts, so it has to come before the runtime. Programs stay allowed to be
//! run, because the firewall's iptables mode runs some; they have no more rights than the node.

mod capabilities;
mod denial;
mod files;
mod links;

use std::path::{Path, PathBuf};

use tracing::{info, warn};

pub(crate) use capabilities::{BpfRights, give_up};
pub(crate) use denial::Allowed;

use crate::{DaemonOptions, node_id, parent_folder, stores::StorePlan};

/// What a node has left.
#[derive(Debug)]
pub(crate) struct Rights {
    capabilities: String,
    /// What is in force about files.
    files: String,
    pub(crate) allowed: Allowed,
}

/// Says in one line what is in force, and in another if that is too little for a node.
pub(crate) fn log(rights: Option<&Rights>) {
    if !capabilities::may_configure() {
        warn!(
            "CAP_NET_ADMIN is missing, so the kernel will refuse: start as root, or with that capability"
        );
    }
    let Some(Rights { capabilities, files, .. }) = rights else {
        info!("no sandbox: --sandbox=off");
        return;
    };
    let none = rustix::thread::no_new_privs().unwrap_or_default();
    let new_privileges = if none { "none" } else { "possible" };
    info!(%capabilities, new_privileges, %files, "sandbox");
}

/// Gives up what the node does not need.
pub(crate) fn enter(options: &DaemonOptions, store: &StorePlan) -> Rights {
    if flannel_firewall::needs_net_raw() {
        files::ensure_lock_file(Path::new(files::XTABLES_LOCK));
    }
    let capabilities = capabilities::reduce();
    let reads: Vec<_> =
        store.reads.iter().flat_map(|file| links::folders_on_the_way(file)).collect();
    let writes = folders(options, store);
    let files = files::restrict(&reads, &writes);
    Rights { capabilities, files, allowed: Allowed::new(&store.reads, &writes) }
}

/// The folder itself, or the nearest above it that is there, where the node will make it: a rule needs something to be about.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.is_dir());
    found.unwrap_or_else(|| Path::new(".")).to_owned()
}

/// What has to be writable so that the node can make this folder again when somebody removes it while it runs: the folder above it,
/// because a rule is about a folder and not about its name. Not the root: that would be all there is.
fn lasting(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let above = folder.parent().filter(|above| above.parent().is_some());
    existing(above.unwrap_or(&folder))
}

/// The folders that the node writes to.
fn folders(options: &DaemonOptions, store: &StorePlan) -> Vec<PathBuf> {
    let subnet_file = parent_folder(&options.subnet_file);
    let key_file = options.wireguard_key_file.as_deref().and_then(parent_folder);
    let folders = store.writes.iter().chain(&subnet_file).chain(&key_file);
    let lasting = folders.map(|folder| lasting(folder));
    // It is written when the node starts, and not again.
    let state = options.node_id.is_none().then(|| node_id::folder(options.state_dir.as_deref()));
    lasting.chain(state.map(existing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StoreOptions, Stores, stores::StoreRequest};

    #[test]
    fn the_folders_that_a_node_writes_to_are_those_of_its_options() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["run/flannel", "store", "state", "keys/wireguard"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        let named = DaemonOptions {
            store: StoreOptions::file(path("store")),
            subnet_file: path("run/flannel/subnet.env"),
            state_dir: Some(path("state")),
            ..DaemonOptions::default()
        };
        let of = |options: &DaemonOptions| {
            let request = StoreRequest { options: &options.store, network: None, create: true };
            folders(options, &Stores::default().plan(&request).unwrap())
        };
        let above = folder.path().to_owned();
        assert_eq!(of(&named), [above.clone(), path("run"), path("state")]);
        let wireguard_key_file = Some(path("keys/wireguard/wgkey"));
        let with_key = DaemonOptions { wireguard_key_file, ..named.clone() };
        assert_eq!(of(&with_key), [above.clone(), path("run"), path("keys"), path("state")]);
        let node_id = Some("n1".parse().unwrap());
        assert_eq!(of(&DaemonOptions { node_id, ..named }), [above, path("run")]);
        assert_eq!(lasting(Path::new("/usr")), Path::new("/usr"), "not the root");
    }

    #[test]
    fn a_folder_that_is_removed_while_the_node_runs_can_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let subnet_file = folder.path().join("run/flannel/subnet.env");
        let store = folder.path().join("lib/store");
        let options = DaemonOptions {
            store: StoreOptions::file(&store),
            subnet_file: subnet_file.clone(),
            node_id: Some("n1".parse().unwrap()),
            ..DaemonOptions::default()
        };
        let files = [subnet_file, store.join("config")];
        for file in &files {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        let request = StoreRequest { options: &options.store, network: None, create: true };
        let plan = Stores::default().plan(&request).unwrap();
        let writes = folders(&options, &plan);
        std::thread::scope(|scope| {
            let restricted = || {
                files::restrict(&[], &writes);
                for file in &files {
                    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
                    crate::atomic_file::write(file, "x").unwrap();
                }
            };
            scope.spawn(restricted).join().unwrap();
        });
    }

    #[test]
    fn a_folder_that_is_to_be_made_stands_for_the_one_above_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(folder.path()), folder.path());
        assert_eq!(existing(&folder.path().join("run/flannel")), folder.path());
        assert_eq!(existing(Path::new("no-such-folder")), Path::new("."));
    }
}
