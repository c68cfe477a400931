//! Which leases are newer: of two that contradict each other, the newer one counts, as with flannel.

use std::{cmp::Reverse, collections::BTreeMap};

use flannel_core::{Lease, LeaseAttrs, Peers, Subnet};

/// The leases of the last sync, with the number of the sync that first saw them as they are.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    syncs: u64,
    seen: BTreeMap<Subnet, (u64, LeaseAttrs)>,
}

impl Arrivals {
    /// The leases of `peers`, newest first. Of those that came together, as at the start, a lease with more families goes first: the
    /// other may have been left from before the network had both.
    pub(crate) fn newest_first<'a>(&mut self, peers: &'a Peers) -> Vec<&'a Lease> {
        self.syncs += 1;
        let mut before = std::mem::take(&mut self.seen);
        self.seen.extend(peers.iter().map(|lease| {
            let known = before.remove(&lease.subnet).filter(|(_, attrs)| *attrs == lease.attrs);
            (lease.subnet, known.unwrap_or_else(|| (self.syncs, lease.attrs.clone())))
        }));
        let mut leases: Vec<_> = peers.iter().collect();
        leases.sort_by_key(|lease| {
            Reverse((self.seen[&lease.subnet].0, lease.subnet.blocks().count()))
        });
        leases
    }
}
