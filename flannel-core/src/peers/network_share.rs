//! How two networks of one node share the ways to its peers.

use std::collections::BTreeSet;

use crate::subnet::Subnet;

/// How a network shares the ways to the peers with another network of the same node, while the node moves from one backend to another.
///
/// Each of both is given all peers that it can reach. Packets to a peer on standby go by the other network: this one has no route to
/// its subnet, and accepts all that comes from it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NetworkShare {
    /// The peers on standby.
    pub standby: BTreeSet<Subnet>,
    /// Which routes the network may have.
    pub scope: RouteScope,
}

/// Which routes a network has that leads its whole address block into one device.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RouteScope {
    /// One for the whole network, and those to peers that differ from it.
    #[default]
    Network,
    /// One to each peer that is not on standby, and none for the whole network: another network has that.
    Peers,
    /// Both, for the moment between the two.
    Both,
}

impl RouteScope {
    /// Whether there is a route for the whole network, and whatever else a network wants for itself alone.
    pub const fn has_network(self) -> bool {
        matches!(self, Self::Network | Self::Both)
    }

    /// Whether there is a route to each peer.
    pub const fn has_peers(self) -> bool {
        matches!(self, Self::Peers | Self::Both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_says_which_routes_there_are() {
        let routes = |scope: RouteScope| (scope.has_network(), scope.has_peers());
        let scopes = [RouteScope::Network, RouteScope::Peers, RouteScope::Both];
        assert_eq!(scopes.map(routes), [(true, false), (false, true), (true, true)]);
    }
}
