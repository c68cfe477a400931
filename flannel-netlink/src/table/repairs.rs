use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::{RateLimit, state::Key};

/// How often we repair each object against somebody who keeps changing it.
#[derive(Debug, Default)]
pub(crate) struct RepairLimiter(BTreeMap<Key, RateLimit>);

impl RepairLimiter {
    /// When `key` may be written again; `None` for now.
    pub(crate) fn due(&self, key: &Key, now: Instant) -> Option<Instant> {
        self.0.get(key)?.due(now)
    }

    /// Notes that a changed object was repaired.
    pub(crate) fn repaired(&mut self, key: Key, now: Instant) {
        self.0.entry(key).or_insert(RateLimit::REPAIRS).done(now);
    }

    /// The owner wants something else now: nothing to wait for.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// Drops what is calm.
    pub(crate) fn prune(&mut self, now: Instant) {
        self.0.retain(|_, rate_limit| !rate_limit.is_calm(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_is_changed_all_the_time_delays_no_other() {
        let (mut repairs, now) = (RepairLimiter::default(), Instant::now());
        let [changed, other] = [1, 2].map(Key::Nexthop);
        while repairs.due(&changed, now).is_none() {
            repairs.repaired(changed, now);
        }
        repairs.repaired(other, now);
        assert_eq!(repairs.due(&other, now), None);
        repairs.forget(&changed);
        assert_eq!(repairs.due(&changed, now), None);
    }
}
