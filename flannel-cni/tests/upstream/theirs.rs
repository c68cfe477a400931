//! The programs of containernetworking.

use std::{env, path::PathBuf};

use flannel_netlink::Namespace;

use crate::support::{Node, Pod};

/// Whose plugin is run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Ours,
    Theirs,
}

impl Side {
    /// The program of this side that is `plugin`.
    pub(crate) fn program(self, node: &Node, plugin: &str) -> PathBuf {
        match self {
            Self::Ours => node.program(plugin),
            Self::Theirs => theirs(plugin),
        }
    }
}

/// A program that `./ci.sh cni` built from `tests/cni`, in the target folder that this test was built in.
pub(crate) fn theirs(name: &str) -> PathBuf {
    let own = env::current_exe().unwrap();
    let found = own.ancestors().map(|folder| folder.join("cni").join(VERSION).join(name));
    found
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("there is no {name} of containernetworking: run ./ci.sh cni"))
}

/// A container that no namespace was made for: giving it addresses needs none.
pub(crate) fn absent(id: &str) -> Pod {
    let (namespace, netns) = (Namespace::current().unwrap(), Some("/run/netns/none".to_owned()));
    Pod { id: id.to_owned(), namespace, netns, keeper: None }
}

/// As in `tests/cni/go.mod`.
const VERSION: &str = "v1.10.0";
