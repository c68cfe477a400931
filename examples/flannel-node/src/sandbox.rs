//! Gives up what a node does not need, before anything else runs: capabilities, new privileges, and most of the file system.
//!
//! All of it is of the calling thread and those that it starts, so it has to come before the runtime. Programs stay allowed to be
//! run, because the firewall's iptables mode runs some; they have no more rights than the node.

mod capabilities;
mod files;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tracing::{info, warn};

use crate::{
    args::{NodeArgs, StoreArg},
    node_id,
};

/// How much a node gives up.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SandboxArgs {
    /// Whether to give up capabilities, new privileges and files that a node does not need, as far as the kernel can.
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) sandbox: Sandbox,
}

/// Whether to give up what is not needed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Sandbox {
    /// As far as this kernel and our rights allow; a log line says what is in force.
    #[default]
    Auto,
    /// Keep everything.
    Off,
}

/// What a node has left.
#[derive(Debug)]
pub(crate) struct Rights {
    may_configure: bool,
    /// Capabilities, and what is in force about files; `None` with `--sandbox=off`.
    reduced: Option<(String, String)>,
}

impl Rights {
    /// Says in one line what is in force, and in another if that is too little for a node.
    pub(crate) fn log(&self) {
        if !self.may_configure {
            warn!(
                "CAP_NET_ADMIN is missing, so the kernel will refuse: start as root, or with that capability"
            );
        }
        let Some((capabilities, files)) = &self.reduced else {
            info!("no sandbox: --sandbox=off");
            return;
        };
        let none = rustix::thread::no_new_privs().unwrap_or_default();
        let new_privileges = if none { "none" } else { "possible" };
        info!(%capabilities, new_privileges, %files, "sandbox");
    }
}

/// Gives up what the node of `args` does not need.
pub(crate) fn enter(args: &NodeArgs) -> Rights {
    let reduced = match args.sandbox.sandbox {
        Sandbox::Auto => Some((capabilities::reduce(), restrict_files(args))),
        Sandbox::Off => None,
    };
    Rights { may_configure: capabilities::may_configure(), reduced }
}

/// Gives up what only other backends than this one need, before the node does anything with the network.
pub(crate) fn settle(args: &NodeArgs, backend: &str) {
    if args.sandbox.sandbox == Sandbox::Auto && backend != "udp" {
        capabilities::settle();
    }
}

/// Leaves the node the files it reads, and the folders it writes to.
fn restrict_files(args: &NodeArgs) -> String {
    let folders: Vec<_> = folders(args).iter().map(|folder| existing(folder)).collect();
    files::restrict(&certificates(args), &folders)
}

/// The folder itself, or the nearest above it that is there, where the node will make it: a rule needs something to be about.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.is_dir());
    found.unwrap_or_else(|| Path::new(".")).to_owned()
}

/// The folders that the node writes to.
fn folders(args: &NodeArgs) -> Vec<PathBuf> {
    let store = match &args.store.store {
        Some(StoreArg::File(path)) => Some(path.clone()),
        Some(StoreArg::Memory) | None => None,
    };
    let state = args.node_id.is_none().then(|| node_id::folder(args.state_dir.as_deref()));
    let state = state.map(Path::to_owned);
    store.into_iter().chain(folder_of(&args.subnet_file)).chain(state).collect()
}

/// The folders of the certificates and keys that are shown to etcd or asked of it, which others may replace while we run.
fn certificates(args: &NodeArgs) -> Vec<PathBuf> {
    let store = &args.store;
    let named = [&store.etcd_cafile, &store.etcd_certfile, &store.etcd_keyfile];
    named.into_iter().flatten().filter_map(|file| folder_of(file)).collect()
}

fn folder_of(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    Some(if folder.as_os_str().is_empty() { ".".into() } else { folder.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_that_a_node_writes_to_are_those_of_its_flags() {
        let folders = |args: &[&str]| {
            let line = ["flannel-node"].iter().chain(args).map(Into::into);
            folders(&crate::args::Cli::read(line, |_| None).unwrap().node)
        };
        let expected = ["/run/flannel", "/var/lib/flannel-node"].map(PathBuf::from);
        assert_eq!(folders(&[]), expected);
        let args = ["--store=file:/s", "--subnet-file=/a/b.env", "--state-dir=/c"];
        assert_eq!(folders(&args), ["/s", "/a", "/c"].map(PathBuf::from));
        assert_eq!(folders(&["--node-id=n1"]), ["/run/flannel"].map(PathBuf::from));
    }

    #[test]
    fn a_folder_that_is_to_be_made_stands_for_the_one_above_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(folder.path()), folder.path());
        assert_eq!(existing(&folder.path().join("run/flannel")), folder.path());
        assert_eq!(existing(Path::new("no-such-folder")), Path::new("."));
    }
}
