//! Peers whose lease has gone a moment ago.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    lease::{Lease, LeaseEvent},
    peers::Peers,
    subnet::Subnet,
};

/// How long peers are served after their leases have gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grace {
    /// After some were seen to go.
    pub(super) single: Duration,
    /// After most have gone at once, or without being seen to go, which is rather an accident of the store.
    pub(super) bulk: Duration,
}

/// Removals that are not acted on yet. Who lost a lease by mistake has it again soon, and its pods are not cut off for that.
#[derive(Debug)]
pub(super) struct PendingRemovals {
    grace: Grace,
    pending: BTreeMap<Subnet, Pending>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    until: Instant,
    bulk: bool,
}

impl PendingRemovals {
    pub(super) fn new(grace: Grace) -> Self {
        Self { grace, pending: BTreeMap::new() }
    }

    /// What is to be folded into `peers` now that `event` has come: removals wait, and a reset keeps those that it lacks. Whoever
    /// takes a pending peer's place, or holds another lease by now, ends the wait.
    pub(super) fn admit(
        &mut self,
        event: LeaseEvent,
        peers: &Peers,
        now: Instant,
    ) -> Vec<LeaseEvent> {
        match event {
            LeaseEvent::Remove(subnet) if peers.get(&subnet).is_some() => {
                self.wait(subnet, now);
                if self.pending.len() >= FEWEST_IN_BULK && self.pending.len() * 2 > peers.len() {
                    self.all_in_bulk(now);
                }
                Vec::new()
            }
            LeaseEvent::Remove(_) => vec![event],
            LeaseEvent::Reset(mut leases) => {
                let listed: HashSet<_> = leases.iter().map(|lease| lease.subnet).collect();
                self.pending.retain(|subnet, _| !listed.contains(subnet));
                let gone = peers.iter().filter(|peer| !listed.contains(&peer.subnet));
                let gone: Vec<_> = gone.filter(|peer| !is_replaced(peer, &leases)).collect();
                // Nobody saw these go. A store restored from a backup lacks those who came later and may be the last to hear of it. Who
                // waited before does so no longer for being missed again.
                let unseen = |peer: &&&Lease| !self.pending.contains_key(&peer.subnet);
                let unseen: Vec<_> = gone.iter().filter(unseen).map(|peer| peer.subnet).collect();
                if !unseen.is_empty() {
                    unseen.into_iter().for_each(|subnet| self.wait(subnet, now));
                    self.all_in_bulk(now);
                }
                leases.extend(gone.into_iter().cloned().map(Arc::new));
                vec![LeaseEvent::Reset(leases)]
            }
            LeaseEvent::Upsert(lease) => {
                self.pending.remove(&lease.subnet);
                let pending = self.pending.keys().filter_map(|subnet| peers.get(subnet));
                let over = pending.filter(|peer| replaces(&lease, peer)).map(|peer| peer.subnet);
                let over: Vec<_> = over.collect();
                self.pending.retain(|subnet, _| !over.contains(subnet));
                let removals = over.into_iter().map(LeaseEvent::Remove);
                removals.chain([LeaseEvent::Upsert(lease)]).collect()
            }
        }
    }

    /// When [`gone`](Self::gone) may have something to return.
    pub(super) fn next(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.until).min()
    }

    /// A peer that has not come back in time at `now`. One that went in bulk waits again while it `answers`.
    pub(super) fn gone(
        &mut self,
        now: Instant,
        answers: impl Fn(&Subnet) -> bool,
    ) -> Option<Subnet> {
        for (subnet, pending) in &mut self.pending {
            if pending.until > now {
                continue;
            }
            if pending.bulk && answers(subnet) {
                pending.until = now + self.grace.bulk;
                continue;
            }
            let subnet = *subnet;
            self.pending.remove(&subnet);
            return Some(subnet);
        }
        None
    }

    /// Gives everybody the longest time from `now` on: the store has forgotten more than leases.
    pub(super) fn all_in_bulk(&mut self, now: Instant) {
        for pending in self.pending.values_mut() {
            pending.bulk = true;
            pending.until = pending.until.max(now + self.grace.bulk);
        }
    }

    fn wait(&mut self, subnet: Subnet, now: Instant) {
        let pending = Pending { until: now + self.grace.single, bulk: false };
        self.pending.entry(subnet).or_insert(pending);
    }
}

/// Whether `lease` shows that the one of `peer` is over: it takes its place, or is of the same node.
fn replaces(lease: &Lease, peer: &Lease) -> bool {
    let same_node = lease.node.is_some() && lease.node == peer.node;
    let same_address = lease.attrs.address().is_some()
        && lease.attrs.address() == peer.attrs.address()
        && (lease.node.is_none() || peer.node.is_none());
    lease.subnet.overlaps(&peer.subnet) || same_node || same_address
}

fn is_replaced(peer: &Lease, leases: &[Arc<Lease>]) -> bool {
    leases.iter().any(|lease| replaces(lease, peer))
}

/// Fewer peers that are seen to go are not taken for an accident of the store, unless they are most of all.
const FEWEST_IN_BULK: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeaseAttrs, NodeId};

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(n: u8) -> Lease {
        let attrs = LeaseAttrs { public_ip: Some([192, 0, 2, n].into()), ..LeaseAttrs::default() };
        let node = NodeId::new(format!("n{n}")).unwrap();
        Lease::new(format!("10.3.{n}.0-24").parse().unwrap(), attrs).held_by(node)
    }

    fn remove(n: u8) -> LeaseEvent {
        LeaseEvent::Remove(lease(n).subnet)
    }

    /// A node with these peers, which folds what is admitted.
    struct World {
        peers: Peers,
        removals: PendingRemovals,
        now: Instant,
    }

    impl World {
        fn new(peers: impl IntoIterator<Item = u8>) -> Self {
            let config = r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap();
            let mut known = Peers::new(config, lease(1));
            known.fold(LeaseEvent::reset(peers.into_iter().map(lease)));
            let grace = Grace { single: SECOND, bulk: 120 * SECOND };
            Self { peers: known, removals: PendingRemovals::new(grace), now: Instant::now() }
        }

        fn event(&mut self, event: LeaseEvent) {
            for event in self.removals.admit(event, &self.peers, self.now) {
                self.peers.fold(event);
            }
        }

        /// The peers that are served after some time.
        fn after(&mut self, seconds: u32, answering: &[u8]) -> Vec<u8> {
            self.now += seconds * SECOND;
            let answers = |subnet: &Subnet| answering.iter().any(|n| lease(*n).subnet == *subnet);
            while let Some(subnet) = self.removals.gone(self.now, answers) {
                self.peers.fold(LeaseEvent::Remove(subnet));
            }
            assert!(self.removals.next().is_none_or(|next| next > self.now));
            self.peers
                .iter()
                .map(|peer| peer.subnet.ipv4().unwrap().network().octets()[2])
                .collect()
        }
    }

    #[test]
    fn who_does_not_come_back_in_time_is_gone() {
        let mut world = World::new(2..=9);
        // Half of them are not most.
        (2..=5).for_each(|n| world.event(remove(n)));
        world.event(LeaseEvent::upsert(lease(3)));
        assert_eq!(world.after(0, &[]), [2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(world.removals.next(), Some(world.now + SECOND));
        assert_eq!(world.after(1, &[2]), [3, 6, 7, 8, 9], "an answer counts only for bulk");
        assert_eq!(world.removals.next(), None);
    }

    #[test]
    fn who_went_unseen_has_more_time() {
        let mut world = World::new(2..=9);
        let with_us = |peers: &[u8]| LeaseEvent::reset(peers.iter().chain(&[1]).map(|n| lease(*n)));
        world.event(with_us(&[3, 4, 5, 6, 7, 8, 9]));
        assert_eq!(world.after(119, &[]), [2, 3, 4, 5, 6, 7, 8, 9]);
        // Others that go later have their own time, and who comes back is not waited for.
        world.event(with_us(&[2, 4, 5, 6, 7, 8, 9]));
        world.event(remove(9));
        assert_eq!(world.after(1, &[]), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(world.after(118, &[3]).len(), 7);
        assert_eq!(world.after(1, &[3]), [2, 3, 4, 5, 6, 7, 8], "it answers");
        assert_eq!(world.after(120, &[]), [2, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn who_is_missed_again_waits_no_longer_for_that() {
        let mut world = World::new(2..=9);
        let with_us = |peers: &[u8]| LeaseEvent::reset(peers.iter().chain(&[1]).map(|n| lease(*n)));
        world.event(with_us(&[3, 4, 5, 6, 7, 8, 9]));
        assert_eq!(world.after(100, &[]).len(), 8);
        world.event(remove(9));
        world.event(with_us(&[3, 4, 5, 6, 7, 8]));
        assert_eq!(world.after(1, &[]), [2, 3, 4, 5, 6, 7, 8], "it was seen to go");
        assert_eq!(world.after(19, &[]), [3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn who_goes_with_most_others_has_more_time_and_stays_while_it_answers() {
        for one_by_one in [false, true] {
            let mut world = World::new(2..=6);
            if one_by_one {
                (2..=4).for_each(|n| world.event(remove(n)));
            } else {
                world.event(LeaseEvent::reset(vec![lease(5), lease(6)]));
            }
            assert_eq!(world.after(119, &[]), [2, 3, 4, 5, 6]);
            world.event(LeaseEvent::upsert(lease(2)));
            assert_eq!(world.after(1, &[3]), [2, 3, 5, 6]);
            assert_eq!(world.after(119, &[]), [2, 3, 5, 6], "asked again later");
            assert_eq!(world.after(1, &[]), [2, 5, 6]);
        }
        let mut pair = World::new([2]);
        pair.event(LeaseEvent::Reset(vec![]));
        assert_eq!(pair.after(119, &[]), [2], "the only peer is most of them");
    }

    #[test]
    fn who_is_replaced_is_not_waited_for() {
        let moved = Lease { subnet: "10.3.77.0-24".parse().unwrap(), ..lease(2) };
        let larger = Lease { subnet: "10.3.2.0-23".parse().unwrap(), ..lease(99) };
        let flannel = Lease { node: None, ..moved.clone() };
        for (lease_now, rest) in
            [(moved, vec![3, 4, 77]), (larger, vec![2, 4]), (flannel, vec![3, 4, 77])]
        {
            let mut world = World::new(2..=4);
            world.event(LeaseEvent::Reset(vec![]));
            world.event(LeaseEvent::upsert(lease_now.clone()));
            assert_eq!(world.after(0, &[]), rest, "{lease_now:?}");
            let mut world = World::new(2..=4);
            world.event(LeaseEvent::reset(vec![lease_now.clone()]));
            assert_eq!(world.after(0, &[]), rest, "{lease_now:?}");
        }
        let mut world = World::new(2..=4);
        world.event(LeaseEvent::Reset(vec![]));
        let shared = LeaseAttrs { ..lease(2).attrs };
        let other = Lease { attrs: shared, ..lease(88) };
        world.event(LeaseEvent::upsert(other));
        assert_eq!(world.after(0, &[]), [2, 3, 4, 88], "two names at one address are two nodes");
    }

    #[test]
    fn all_have_more_time_once_the_store_is_known_to_have_forgotten() {
        let mut world = World::new(2..=9);
        world.event(remove(2));
        world.removals.all_in_bulk(world.now);
        assert_eq!(world.after(119, &[]).len(), 8);
        assert_eq!(world.after(1, &[]).len(), 7);
        world.event(LeaseEvent::Remove("10.3.200.0-24".parse().unwrap()));
        assert_eq!(world.removals.next(), None, "nobody knew it");
    }
}
