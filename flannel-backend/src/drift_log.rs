//! Saying who changed what of ours, and not too often.

use std::{fs, time::Duration};

use flannel_netlink::{
    RateLimit,
    table::{ChangedBy, Drift},
};
use tokio::time::Instant;
use tracing::warn;

/// Logs changes by others. However many there are, a person sees the first ones, that it goes on, and how much was left out.
#[derive(Debug)]
pub(crate) struct DriftLog {
    rate_limit: RateLimit,
    unsaid: u64,
}

impl Default for DriftLog {
    fn default() -> Self {
        Self { rate_limit: LOG_LINES, unsaid: 0 }
    }
}

impl DriftLog {
    pub(crate) fn tell(&mut self, drifts: &[Drift]) {
        for (drift, unsaid) in self.choose(drifts, Instant::now()) {
            let process = process(drift.by);
            let unsaid = Some(unsaid).filter(|unsaid| *unsaid > 0);
            warn!(process, unsaid, "{drift}");
        }
    }

    /// Which to say at `now`, each with how many were not said before it.
    fn choose<'a>(&mut self, drifts: &'a [Drift], now: Instant) -> Vec<(&'a Drift, u64)> {
        let mut said = Vec::new();
        for drift in drifts {
            // Of many at once, such as a whole table that was flushed, a few show what it is about.
            if said.len() < MOST_AT_ONCE && self.rate_limit.due(now).is_none() {
                self.rate_limit.done(now);
                said.push((drift, std::mem::take(&mut self.unsaid)));
            } else {
                self.unsaid += 1;
            }
        }
        said
    }
}

/// The name of the program, as far as netlink tells: a program's first socket has its process number as port. Many programs have
/// ended by the time somebody asks.
fn process(by: ChangedBy) -> Option<String> {
    let ChangedBy::Port(port) = by else { return None };
    let name = fs::read_to_string(format!("/proc/{port}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

const MOST_AT_ONCE: usize = 5;
/// How often the same thing may be said again: 20 lines at once, and twelve a minute for as long as it goes on. Enough to see it, too
/// few to fill a disk.
pub const LOG_LINES: RateLimit = RateLimit::new(20, Duration::from_secs(5));

#[cfg(test)]
mod tests {
    use flannel_netlink::{
        state::Key,
        table::{DriftChange, DriftSubject},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_changes_are_said_and_then_a_few_with_the_number_of_the_others() {
        let drift = |id| Drift::new(DriftSubject::Object(Key::Nexthop(id)), DriftChange::Removed);
        let flush: Vec<_> = (0..100).map(drift).collect();
        let mut log = DriftLog::default();
        assert_eq!(log.choose(&flush, Instant::now()).len(), MOST_AT_ONCE);
        assert_eq!(log.choose(&flush[..1], Instant::now()), [(&flush[0], 95)]);
        let mut said = 0;
        for _ in 0..6000 {
            said += log.choose(&flush[..1], Instant::now()).len();
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((130..=140).contains(&said), "{said} lines in 10 minutes");
        assert!(log.unsaid > 0);
    }

    #[test]
    fn a_process_is_named_while_it_runs() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let named = process(ChangedBy::Port(std::process::id()));
        assert_eq!(named.as_deref(), Some(own.trim_end()));
        assert_eq!(process(ChangedBy::Port(u32::MAX)), None);
        assert_eq!(process(ChangedBy::Kernel), None);
    }
}
