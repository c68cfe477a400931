//! How often is asked.

use std::time::Duration;

/// How a prober asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The UDP port, equal on all nodes. 8286, beside flannel's 8285 and not assigned to anybody.
    pub port: u16,
    /// How long an answer may take. 500 ms: more than any way between hosts of one network.
    pub patience: Duration,
    /// From one look at a way to the next, at least. 60 s; with many peers it is longer, so that a quarter of `per_second` is enough.
    pub interval: Duration,
    /// From one glance at a way to the next, at least: whether what is known of its size still holds, which is one datagram, or
    /// three where less than needed passes. 1 s, so that a way that takes less is known in 3 s; with more than fifty peers it is
    /// longer, so that half of `per_second` is enough.
    pub glance: Duration,
    /// How many datagrams are sent each second on average, at most. 100, which is 150 kB/s where most are of 1500 bytes.
    pub per_second: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 8286,
            patience: Duration::from_millis(500),
            interval: Duration::from_secs(60),
            glance: Duration::from_secs(1),
            per_second: 100,
        }
    }
}

impl Options {
    /// From one look at a way to the next if there are so many ways.
    pub(crate) fn interval_of(&self, paths: usize) -> Duration {
        self.interval.max(self.time_for(paths as f64 * QUESTIONS, 0.25))
    }

    /// From one glance at a way to the next if there are so many ways.
    pub(crate) fn glance_of(&self, paths: usize) -> Duration {
        self.glance.max(self.time_for(paths as f64, 0.5))
    }

    /// How long so many questions take with a part of what may be sent.
    fn time_for(&self, questions: f64, part: f64) -> Duration {
        Duration::from_secs_f64(questions / (f64::from(self.per_second.max(1)) * part))
    }
}

/// A look at a good way, through a tunnel and past it.
const QUESTIONS: f64 = 7.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_peers_are_looked_at_more_rarely() {
        let options = Options::default();
        let seconds = [1, 200, 1000, 10_000].map(|it| options.interval_of(it).as_secs());
        assert_eq!(seconds, [60, 60, 280, 2800]);
        let glances = [1, 50, 1000, 10_000].map(|it| options.glance_of(it).as_secs());
        assert_eq!(glances, [1, 1, 20, 200]);
        let none = Options { per_second: 0, ..options };
        assert_eq!((none.interval_of(10).as_secs(), none.glance_of(10).as_secs()), (280, 20));
    }
}
