use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::state::Key;

/// How often we repair one object against somebody who keeps changing it.
#[derive(Debug, Default)]
pub(crate) struct Patience(BTreeMap<Key, Repair>);

#[derive(Debug)]
struct Repair {
    last: Instant,
    wait: Duration,
}

impl Patience {
    /// When `key` may be written again; `None` for now.
    pub(crate) fn due(&self, key: &Key, now: Instant) -> Option<Instant> {
        let repair = self.0.get(key)?;
        Some(repair.last + repair.wait).filter(|due| *due > now)
    }

    /// Notes that a changed object was repaired. The wait doubles as long as repairs follow each
    /// other.
    pub(crate) fn repaired(&mut self, key: Key, now: Instant) {
        let repair = self.0.entry(key).or_insert(Repair { last: now, wait: Duration::ZERO });
        if now.duration_since(repair.last) > CALM {
            repair.wait = Duration::ZERO;
        } else if repair.last != now {
            repair.wait = (repair.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        }
        repair.last = now;
    }

    /// The owner wants something else now: nothing to wait for.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// Drops what was calm for long.
    pub(crate) fn prune(&mut self, now: Instant) {
        self.0.retain(|_, repair| now.duration_since(repair.last) <= CALM);
    }
}

/// So long without a change, and the next repair is immediate again.
const CALM: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Two repairs a second at most, and never more than half a second until things are right.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_meddler_costs_two_writes_a_second() {
        let (mut patience, key, mut writes) = (Patience::default(), Key::Nexthop(1), 0);
        for _ in 0..100 {
            let now = Instant::now();
            if patience.due(&key, now).is_none() {
                patience.repaired(key, now);
                writes += 1;
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((18..=26).contains(&writes), "{writes} in 10 s");
    }

    #[tokio::test(start_paused = true)]
    async fn after_calm_the_next_repair_is_immediate() {
        let (mut patience, key) = (Patience::default(), Key::Nexthop(1));
        for _ in 0..5 {
            patience.repaired(key, Instant::now());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(patience.due(&key, Instant::now()).is_some());
        tokio::time::advance(CALM + Duration::from_millis(1)).await;
        patience.repaired(key, Instant::now());
        assert_eq!(patience.due(&key, Instant::now()), None);
        patience.prune(Instant::now());
        assert_eq!(patience.0.len(), 1);
    }
}
