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
