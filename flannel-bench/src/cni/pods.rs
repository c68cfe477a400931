use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use flannel_netlink::Namespace;

/// A pod's network namespace, which is there while this is.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) id: String,
    namespace: Namespace,
}

impl Pod {
    pub(super) fn new(id: String) -> Result<Self> {
        let namespace = Namespace::create().context("cannot make a pod's namespace")?;
        Ok(Self { id, namespace })
    }

    /// Where a plugin finds it.
    pub(super) fn netns(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_fd().as_raw_fd())
    }
}
