//! What is known of the ways to peers beside what their leases say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_netlink::state::IpFamily;
use ipnetwork::IpNetwork;
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

/// The MTU of the route to `block` over a way that takes packets of `limit` bytes, `overhead` of which are not the packet's own.
/// `None` if the route's device, which takes `device` bytes, takes no more; or if the rest is less than every host must take in, as
/// no route can make packets smaller than that.
pub fn route_mtu(block: &IpNetwork, limit: u32, overhead: u32, device: u32) -> Option<u32> {
    let smallest = smallest_mtu(IpFamily::of(&block.ip()));
    limit.checked_sub(overhead).filter(|inside| (smallest..device).contains(inside))
}

/// The smallest MTU that a link or a way of this family is of use with, bytes: what every host must take in (RFC 791), and what IPv6
/// needs (RFC 8200).
pub const fn smallest_mtu(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 576,
        IpFamily::V6 => 1280,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_takes_what_hosts_must_and_less_than_its_device() {
        let mtu = |block: &str, limit, overhead| {
            route_mtu(&block.parse().unwrap(), limit, overhead, 1452)
        };
        let v4 = |limit| mtu("10.244.2.0/24", limit, 28);
        assert_eq!([0, 52, 603].map(v4), [None; 3]);
        assert_eq!([604, 1400, 1479].map(v4), [Some(576), Some(1372), Some(1451)]);
        assert_eq!([1480, 1490, u32::MAX].map(v4), [None; 3]);
        let v6 = |limit| mtu("fd00:0:0:2::/64", limit, 48);
        assert_eq!([1327, 1328, 1500].map(v6), [None, Some(1280), None]);
    }
}
