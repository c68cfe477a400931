//! How often is probed.

use std::time::Duration;

/// How a prober asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The UDP port, equal on all nodes. 8286, beside flannel's 8285 and not assigned to anybody.
    pub port: u16,
    /// How long an answer may take. 500 ms: more than any path between hosts of one network.
    pub timeout: Duration,
    /// Between two full rounds on a path, at least. 60 s; with many peers it is longer, so that a quarter of `per_second` is enough.
    pub interval: Duration,
    /// Between two confirmations of a path, at least: whether what is known of its size still holds, which is one datagram, or
    /// three where less than needed passes. 1 s, so that a path that takes less is known in 3 s; with more than fifty peers it is
    /// longer, so that half of `per_second` is enough.
    pub confirm_interval: Duration,
    /// How many datagrams are sent each second on average, at most. 100, which is 150 kB/s where most are of 1500 bytes.
    pub per_second: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 8286,
            timeout: Duration::from_millis(500),
            interval: Duration::from_secs(60),
            confirm_interval: Duration::from_secs(1),
            per_second: 100,
        }
    }
}

impl Options {
    /// Between two full rounds on a path if there are so many paths.
    pub(crate) fn interval_of(&self, paths: usize) -> Duration {
        self.interval.max(self.time_for(paths as f64 * PROBES, 0.25))
    }

    /// Between two confirmations of a path if there are so many paths.
    pub(crate) fn confirm_interval_of(&self, paths: usize) -> Duration {
        self.confirm_interval.max(self.time_for(paths as f64, 0.5))
    }

    /// How long so many probes take with a part of what may be sent.
    fn time_for(&self, probes: f64, part: f64) -> Duration {
        Duration::from_secs_f64(probes / (f64::from(self.per_second.max(1)) * part))
    }
}

/// A full round on a good path, through a tunnel and past it.
const PROBES: f64 = 7.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_peers_are_looked_at_more_rarely() {
        let options = Options::default();
        let seconds = [1, 200, 1000, 10_000].map(|it| options.interval_of(it).as_secs());
        assert_eq!(seconds, [60, 60, 280, 2800]);
        let confirmations =
            [1, 50, 1000, 10_000].map(|it| options.confirm_interval_of(it).as_secs());
        assert_eq!(confirmations, [1, 1, 20, 200]);
        let none = Options { per_second: 0, ..options };
        assert_eq!(
            (none.interval_of(10).as_secs(), none.confirm_interval_of(10).as_secs()),
            (280, 20)
        );
    }
}
