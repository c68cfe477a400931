//! Peers whose lease has gone a moment ago.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::{lease::LeaseEvent, subnet::Subnet};

/// Removals that are not acted on yet. Who lost a lease by mistake has it again within milliseconds, and its pods are not cut off
/// for that.
#[derive(Debug, Default)]
pub(super) struct PendingRemovals {
    until: HashMap<Subnet, Instant>,
    /// When to look again, in order. What is not in `until` any more has come back.
    order: VecDeque<(Instant, Subnet)>,
}

impl PendingRemovals {
    /// Keeps back a removal until an instant, and returns any other event. What it says of a peer that leaves is the last word.
    pub(super) fn admit(&mut self, event: LeaseEvent, until: Instant) -> Option<LeaseEvent> {
        match &event {
            LeaseEvent::Remove(subnet) => {
                self.until.insert(*subnet, until);
                self.order.push_back((until, *subnet));
                return None;
            }
            LeaseEvent::Reset(_) => *self = Self::default(),
            LeaseEvent::Upsert(lease) => {
                self.until.remove(&lease.subnet);
            }
        }
        Some(event)
    }

    /// When [`gone`](Self::gone) may have something to return.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.front().map(|(until, _)| *until)
    }

    /// A peer that has not come back in time at `now`.
    pub(super) fn gone(&mut self, now: Instant) -> Option<Subnet> {
        while let Some((until, subnet)) = self.order.front().copied().filter(|(at, _)| *at <= now) {
            self.order.pop_front();
            if self.until.get(&subnet) == Some(&until) {
                self.until.remove(&subnet);
                return Some(subnet);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Lease, LeaseAttrs};

    #[test]
    fn who_does_not_come_back_in_time_is_gone() {
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_secs(n);
        let subnet = |n: u8| format!("10.3.{n}.0-24").parse::<Subnet>().unwrap();
        let back = |n| LeaseEvent::Upsert(Lease::new(subnet(n), LeaseAttrs::default()));
        let mut removals = PendingRemovals::default();
        assert_eq!(removals.next(), None);
        for n in 1..=3 {
            assert_eq!(removals.admit(LeaseEvent::Remove(subnet(n)), at(n.into())), None);
        }
        assert_eq!(removals.admit(back(2), at(4)), Some(back(2)));
        assert_eq!((removals.next(), removals.gone(start)), (Some(at(1)), None));
        // The second one goes again, later than the third.
        assert_eq!(removals.admit(LeaseEvent::Remove(subnet(2)), at(4)), None);
        let mut gone = |now| std::iter::from_fn(|| removals.gone(now)).collect::<Vec<_>>();
        assert_eq!(gone(at(3)), [subnet(1), subnet(3)]);
        assert_eq!(gone(at(9)), [subnet(2)]);

        assert_eq!(removals.admit(LeaseEvent::Remove(subnet(1)), at(9)), None);
        let all = LeaseEvent::Reset(Vec::new());
        assert_eq!(removals.admit(all.clone(), at(9)), Some(all));
        assert_eq!((removals.next(), removals.gone(at(9))), (None, None));
    }
}
