//! Which peer a packet goes to, and which peer it may come from.

use std::{
    collections::{BTreeMap, HashMap},
    hash::BuildHasherDefault,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use flannel_tunnel::prefixes::{Mix, Prefixes};

use crate::{config::SourceCheck, peer_stats::PeerCounters, plan::ForwardingPlan};

/// What packets are judged by. Never changed: a new one takes its place.
#[derive(Debug, Default)]
pub(crate) struct Table {
    endpoints: Prefixes<SocketAddr>,
    peers: HashMap<IpAddr, Arc<PeerCounters>, BuildHasherDefault<Mix>>,
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
            table.peers.entry(endpoint.ip()).or_default();
            table.endpoints.insert(*block, *endpoint);
        }
        table
    }

    /// The same with the counters of peers that are known already. Those of others are added there, and those of peers that are no
    /// more are removed.
    pub(crate) fn counted_in(mut self, known: &mut BTreeMap<IpAddr, Arc<PeerCounters>>) -> Self {
        known.retain(|ip, _| self.peers.contains_key(ip));
        for (ip, counters) in &mut self.peers {
            *counters = Arc::clone(known.entry(*ip).or_insert_with(|| Arc::clone(counters)));
        }
        self
    }

    /// Where the peer is reached that has `ip` in its subnet.
    pub(crate) fn endpoint(&self, ip: IpAddr) -> Option<SocketAddr> {
        self.endpoints.find(ip).copied()
    }

    /// Whether a peer is reached at `ip`.
    pub(crate) fn is_known(&self, ip: IpAddr) -> bool {
        self.peers.contains_key(&ip)
    }

    /// The counters of the peer that is reached at `ip`.
    pub(crate) fn counters(&self, ip: IpAddr) -> Option<&PeerCounters> {
        self.peers.get(&ip).map(Arc::as_ref)
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

    #[test]
    fn a_peer_counts_on_in_a_new_table_until_it_has_left() {
        let mut known = BTreeMap::new();
        let mut sent = |blocks: &[(&str, u8)]| {
            let blocks = blocks.iter().map(|(block, n)| (block.parse().unwrap(), endpoint(*n)));
            let table = table(blocks.collect()).counted_in(&mut known);
            let counters = table.counters([192, 0, 2, 2].into());
            counters.inspect(|counters| counters.sent(1, 100));
            (counters.map(|counters| counters.read().packets_sent), known.len())
        };
        assert_eq!(sent(&[("10.3.2.0/24", 2)]), (Some(1), 1));
        assert_eq!(sent(&[("10.3.2.0/24", 2), ("10.3.3.0/24", 3)]), (Some(2), 2));
        assert_eq!(sent(&[("10.3.9.0/24", 2)]), (Some(3), 1), "with another subnet");
        assert_eq!(sent(&[("10.3.3.0/24", 3)]), (None, 1));
        assert_eq!(sent(&[("10.3.2.0/24", 2)]), (Some(1), 1));
    }
}
