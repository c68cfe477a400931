//! What is known of the ways to peers beside what their leases say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_netlink::state::IpFamily;
use tokio::sync::watch;

/// What somebody has found out about the ways to peers, told to the networks that want to know. Clones share it.
#[derive(Clone, Debug)]
pub struct Paths(watch::Sender<PathFacts>);

/// What is known of the ways to peers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct PathFacts {
    /// How large an IP packet to the public address of a peer may be, bytes, where that is less than what the uplink takes.
    pub mtus: BTreeMap<IpAddr, u32>,
    /// The families in whose tunnels checksums must not be left to the hardware, which damages them.
    pub software_checksums: BTreeSet<IpFamily>,
}

/// What is known, and whether it is news.
#[derive(Clone, Debug)]
pub struct PathsWatch(watch::Receiver<PathFacts>);

impl Paths {
    /// From now on this is known.
    pub fn set(&self, facts: PathFacts) {
        self.0.send_if_modified(|current| {
            let is_other = *current != facts;
            if is_other {
                *current = facts;
            }
            is_other
        });
    }

    /// What is known.
    pub fn current(&self) -> PathFacts {
        self.0.borrow().clone()
    }

    /// Follows what is known.
    pub fn watch(&self) -> PathsWatch {
        PathsWatch(self.0.subscribe())
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self(watch::Sender::new(PathFacts::default()))
    }
}

impl PathsWatch {
    /// What is known, which is no news any more.
    pub fn current(&mut self) -> PathFacts {
        self.0.borrow_and_update().clone()
    }

    /// Waits for news; for ever if nobody is left who could have any.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
