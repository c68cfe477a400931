//! The other nodes, folded from lease events.

mod network_share;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

pub use network_share::{NetworkShare, RouteScope};

use crate::{
    cidr::Cidr,
    config::NetworkConfig,
    lease::{Lease, LeaseAttrs, LeaseEvent},
    peer_fault::{PeerFault, PeerProblem},
    subnet::Subnet,
};

/// The complete set of peers, as a backend has to serve it.
///
/// Our own lease is never among them. A lease that would harm this node if it were followed (outside of the network, over our
/// own subnet or our own address, at our own or an impossible address) is kept aside with the reason; see [`refused`](Self::refused).
///
/// Cloning costs one reference count per peer.
#[derive(Clone, Debug)]
pub struct Peers {
    config: NetworkConfig,
    own: Lease,
    /// In the order of the subnets.
    accepted: Vec<Arc<Lease>>,
    refused: BTreeMap<Subnet, (Arc<Lease>, PeerFault)>,
    /// What the store shows at our own subnet: usually our lease, after a loss somebody else's.
    at_own: Option<Arc<Lease>>,
    revision: Revision,
    changes: VecDeque<Subnet>,
    share: Option<Arc<NetworkShare>>,
}

/// A moment in the life of one set of [`Peers`] and of its clones, to ask what changed since.
#[derive(Clone, Debug)]
pub struct Revision {
    /// The same for all that descend from one [`Peers::new`].
    lineage: Arc<()>,
    number: u64,
}

/// What folding an event showed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FoldOutcome {
    /// Whether the set of peers changed, so that a sync has something to do.
    pub peers_changed: bool,
    /// Whether the store shows our own lease other than we wrote it, gone, or with other attributes or another holder; or
    /// shows a lease that overlaps it and was not known, so that one of the two has to move.
    pub own_differs: bool,
}

impl Peers {
    /// No peers yet, for the node that holds `own` in the network of `config`.
    pub fn new(config: NetworkConfig, own: Lease) -> Self {
        Self {
            config,
            own,
            accepted: Vec::new(),
            refused: BTreeMap::new(),
            at_own: None,
            revision: Revision { lineage: Arc::new(()), number: 0 },
            changes: VecDeque::new(),
            share: None,
        }
    }

    /// The same peers as one of two networks of a node has to serve them: with our lease and those of the peers as `project` shows
    /// them, and without those for which it returns `None`.
    pub fn shared(
        &self,
        own: Lease,
        share: NetworkShare,
        project: impl Fn(&Arc<Lease>) -> Option<Arc<Lease>>,
    ) -> Self {
        let accepted = self.accepted.iter().filter_map(project).collect();
        let empty = Self::new(self.config.clone(), own);
        Self { accepted, share: Some(Arc::new(share)), ..empty }
    }

    /// Whether another network of this node sends packets to the peer, and this one only has to accept what comes from it.
    pub fn is_standby(&self, subnet: &Subnet) -> bool {
        self.share.as_ref().is_some_and(|share| share.standby.contains(subnet))
    }

    /// Which routes a network has that leads the whole network into one device.
    pub fn route_scope(&self) -> RouteScope {
        self.share.as_ref().map(|share| share.scope).unwrap_or_default()
    }

    /// Takes in one event of the watch.
    pub fn fold(&mut self, event: LeaseEvent) -> FoldOutcome {
        let before = self.revision.number;
        let own_differs = match event {
            LeaseEvent::Remove(subnet) => {
                self.forget(subnet);
                subnet == self.own.subnet
            }
            LeaseEvent::Reset(mut leases) => {
                leases.sort_unstable_by_key(|lease| lease.subnet);
                let find = |subnet: &Subnet| {
                    leases.binary_search_by_key(subnet, |lease| lease.subnet).ok()
                };
                let gone: Vec<_> = self.subnets().filter(|it| find(it).is_none()).collect();
                let own_differs = find(&self.own.subnet)
                    .is_none_or(|own| self.differs(&leases[own]))
                    || leases.iter().any(|lease| self.intrudes(lease));
                for subnet in gone {
                    self.forget(subnet);
                }
                self.accepted.reserve_exact(leases.len().saturating_sub(self.accepted.len()));
                for lease in leases {
                    self.upsert(lease);
                }
                own_differs
            }
            LeaseEvent::Upsert(lease) => {
                let own_differs = match lease.subnet == self.own.subnet {
                    true => self.differs(&lease),
                    false => self.intrudes(&lease),
                };
                self.upsert(lease);
                own_differs
            }
        };
        FoldOutcome { peers_changed: self.revision.number != before, own_differs }
    }

    /// Goes on with another lease of our own, and judges all known leases anew.
    pub fn set_own(&mut self, own: Lease) {
        self.own = own;
        self.judge_anew();
    }

    /// Goes on with another configuration, and judges all known leases anew.
    pub fn set_config(&mut self, config: NetworkConfig) {
        self.config = config;
        self.judge_anew();
    }

    fn judge_anew(&mut self) {
        let refused = std::mem::take(&mut self.refused).into_values().map(|(lease, _)| lease);
        let known: Vec<_> =
            refused.chain(self.at_own.take()).chain(self.accepted.iter().cloned()).collect();
        self.drop_accepted(self.own.subnet);
        for lease in known {
            self.upsert(lease);
        }
    }

    /// Our own lease.
    pub fn own(&self) -> &Lease {
        &self.own
    }

    /// The network that all peers are in.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The peers in the order of their subnets.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Lease> {
        self.accepted.iter().map(Arc::as_ref)
    }

    /// The peer that holds exactly `subnet`.
    pub fn get(&self, subnet: &Subnet) -> Option<&Lease> {
        self.find(subnet).ok().map(|place| self.accepted[place].as_ref())
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.accepted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }

    /// The leases that are kept aside, with the reason.
    pub fn refused(&self) -> impl ExactSizeIterator<Item = PeerProblem> {
        self.refused.values().map(|(lease, fault)| {
            PeerProblem::new(lease.subnet, lease.attrs.address(), fault.clone())
        })
    }

    /// This moment, for [`changed_since`](Self::changed_since).
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// The subnets whose peers came, left or changed after `revision`. `None` if that cannot be told, because it is too long ago
    /// or `revision` is of another set: whoever asks has to look at all peers.
    pub fn changed_since(&self, revision: &Revision) -> Option<BTreeSet<Subnet>> {
        if !Arc::ptr_eq(&self.revision.lineage, &revision.lineage) {
            return None;
        }
        let count = usize::try_from(self.revision.number.checked_sub(revision.number)?).ok()?;
        let skip = self.changes.len().checked_sub(count)?;
        Some(self.changes.iter().skip(skip).copied().collect())
    }

    fn subnets(&self) -> impl Iterator<Item = Subnet> {
        let at_own = self.at_own.as_ref().map(|lease| lease.subnet);
        let accepted = self.accepted.iter().map(|lease| lease.subnet);
        accepted.chain(self.refused.keys().copied()).chain(at_own)
    }

    fn differs(&self, seen: &Lease) -> bool {
        // A store that knows no holders shows none; that is no difference.
        let other_holder = seen.node.is_some() && seen.node != self.own.node;
        seen.attrs != self.own.attrs || other_holder
    }

    /// Whether another lease has addresses of our own subnet, and that is news.
    fn intrudes(&self, lease: &Lease) -> bool {
        let known = || self.refused.get(&lease.subnet).is_some_and(|(known, _)| **known == *lease);
        lease.subnet != self.own.subnet && lease.subnet.overlaps(&self.own.subnet) && !known()
    }

    fn upsert(&mut self, lease: Arc<Lease>) {
        let subnet = lease.subnet;
        if subnet == self.own.subnet {
            self.at_own = Some(lease);
            return;
        }
        match self.harm(&lease) {
            Some(fault) => {
                self.forget(subnet);
                self.refused.insert(subnet, (lease, fault));
            }
            None => {
                self.refused.remove(&subnet);
                match self.find(&subnet) {
                    Ok(place) => {
                        // Also where they are equal, so that the store's copy is the only one.
                        let before = std::mem::replace(&mut self.accepted[place], lease);
                        if before == self.accepted[place] {
                            return;
                        }
                    }
                    Err(place) => self.accepted.insert(place, lease),
                }
                self.note(subnet);
            }
        }
    }

    fn forget(&mut self, subnet: Subnet) {
        if subnet == self.own.subnet {
            self.at_own = None;
        }
        self.refused.remove(&subnet);
        self.drop_accepted(subnet);
    }

    fn drop_accepted(&mut self, subnet: Subnet) {
        if let Ok(place) = self.find(&subnet) {
            self.accepted.remove(place);
            self.note(subnet);
        }
    }

    fn find(&self, subnet: &Subnet) -> Result<usize, usize> {
        self.accepted.binary_search_by_key(subnet, |lease| lease.subnet)
    }

    fn note(&mut self, subnet: Subnet) {
        self.revision.number += 1;
        if self.changes.len() == REMEMBERED_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(subnet);
    }

    /// Why following `lease` would harm this node, if it would. Only the families that this node has are looked at.
    fn harm(&self, lease: &Lease) -> Option<PeerFault> {
        let refuse = |detail: String| Some(PeerFault::Refused { detail });
        if lease.node.is_some() && lease.node == self.own.node {
            return refuse("it is another lease of this node".into());
        }
        if lease.subnet.overlaps(&self.own.subnet) {
            return refuse(format!("it overlaps our own subnet {}", self.own.subnet));
        }
        if let (Some(range), Some(block)) = (self.config.ipv4(), lease.subnet.ipv4())
            && !range.network().encloses(&block)
        {
            return refuse(format!("{block} is outside of the network {}", range.network()));
        }
        if let (Some(range), Some(block)) = (self.config.ipv6(), lease.subnet.ipv6())
            && !range.network().encloses(&block)
        {
            return refuse(format!("{block} is outside of the network {}", range.network()));
        }
        let addresses = |attrs: &LeaseAttrs| {
            [attrs.public_ip.map(IpAddr::V4), attrs.public_ipv6.map(IpAddr::V6)]
                .into_iter()
                .flatten()
        };
        // A route to it would lead packets between the machines of our own link to the peer.
        let takes = |address: &IpAddr| match address {
            IpAddr::V4(v4) => lease.subnet.ipv4().is_some_and(|block| block.contains(*v4)),
            IpAddr::V6(v6) => lease.subnet.ipv6().is_some_and(|block| block.contains(*v6)),
        };
        if let Some(own) = addresses(&self.own.attrs).find(takes) {
            return refuse(format!("it contains our own address {own}"));
        }
        for address in addresses(&lease.attrs) {
            if addresses(&self.own.attrs).any(|own| own == address) {
                return refuse(format!("{address} is our own address"));
            }
            let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
            if address.is_loopback() || address.is_multicast() || broadcast {
                return refuse(format!("no node is reached at {address}"));
            }
        }
        None
    }
}

/// How many changes are remembered for [`Peers::changed_since`]: more than a burst between two syncs usually has, and few
/// enough that looking at all peers is cheaper beyond it.
const REMEMBERED_CHANGES: usize = 1024;

#[cfg(test)]
mod tests;
