//! Which peer a packet goes to, and which peer it may come from.

use std::{
    collections::HashSet,
    hash::BuildHasherDefault,
    net::{IpAddr, SocketAddr},
};

use flannel_tunnel::prefixes::{Mix, Prefixes};

use crate::{config::SourceCheck, plan::ForwardingPlan};

/// What packets are judged by. Never changed: a new one takes its place.
#[derive(Debug, Default)]
pub(crate) struct Table {
    endpoints: Prefixes<SocketAddr>,
    known: HashSet<IpAddr, BuildHasherDefault<Mix>>,
    /// Our own addresses and port.
    local: Vec<SocketAddr>,
    source_check: SourceCheck,
}

impl Table {
    pub(crate) fn new(plan: &ForwardingPlan) -> Self {
        let mut table = Self {
            local: plan.local.iter().map(|ip| SocketAddr::new(*ip, plan.port)).collect(),
            source_check: plan.source_check,
            ..Self::default()
        };
        for (block, endpoint) in &plan.endpoints {
            table.known.insert(endpoint.ip());
            table.endpoints.insert(*block, *endpoint);
        }
        table
    }

    /// Where the peer is reached that has `ip` in its subnet.
    pub(crate) fn endpoint(&self, ip: IpAddr) -> Option<SocketAddr> {
        self.endpoints.find(ip).copied()
    }

    /// Whether a peer is reached at `ip`.
    pub(crate) fn is_known(&self, ip: IpAddr) -> bool {
        self.known.contains(&ip)
    }

    /// Whether a datagram from there is one of our own.
    pub(crate) fn is_local(&self, from: SocketAddr) -> bool {
        self.local.contains(&from)
    }

    pub(crate) fn source_check(&self) -> SourceCheck {
        self.source_check
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ipnetwork::IpNetwork;

    use super::*;

    fn table(endpoints: BTreeMap<IpNetwork, SocketAddr>) -> Table {
        Table::new(&ForwardingPlan { endpoints, ..ForwardingPlan::to(&[]) })
    }

    fn endpoint(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 8285).into()
    }

    #[test]
    fn a_table_knows_peers_and_itself() {
        let table = table([("10.3.2.0/24".parse().unwrap(), endpoint(2))].into());
        assert!(table.is_known([192, 0, 2, 2].into()));
        assert!(!table.is_known([192, 0, 2, 3].into()));
        assert!(table.is_local(endpoint(3)));
        assert!(!table.is_local(endpoint(2)));
    }
}
