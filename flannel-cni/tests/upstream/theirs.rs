//! The programs of containernetworking.

use std::path::PathBuf;

use flannel_netlink::Namespace;
use flannel_testbed::cni_plugins;

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
    let found = cni_plugins().map(|folder| folder.join(name)).filter(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no {name} of containernetworking: run ./ci.sh cni"))
}

/// A container that no namespace was made for: giving it addresses needs none.
pub(crate) fn absent(id: &str) -> Pod {
    let (namespace, netns) = (Namespace::current().unwrap(), Some("/run/netns/none".to_owned()));
    Pod { id: id.to_owned(), namespace, netns }
}
