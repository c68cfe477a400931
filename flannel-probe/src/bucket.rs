//! How many datagrams may be sent.

use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and then so many each second. What is taken beyond that is paid back first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    most: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(most: u32, per_second: u32, now: Instant) -> Self {
        let most = f64::from(most);
        Self { most, per_second: f64::from(per_second.max(1)), left: most, at: now }
    }

    /// When at least one is left.
    pub(crate) fn ready(&self) -> Instant {
        let missing = (1.0 - self.left).max(0.0) / self.per_second;
        self.at + Duration::from_secs_f64(missing)
    }

    /// Takes `count` if at least one is left.
    pub(crate) fn take(&mut self, count: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.most);
        self.at = self.at.max(now);
        let is_ready = self.left > 1.0 - 1e-6;
        if is_ready {
            self.left -= count as f64;
        }
        is_ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_followed_by_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 5, start);
        assert!(bucket.take(12, start), "beyond what is left");
        assert_eq!(bucket.ready(), start + Duration::from_millis(600));
        assert!(!bucket.take(1, start + Duration::from_millis(590)));
        let mut taken = 0;
        for n in 0..1000 {
            taken += usize::from(bucket.take(1, start + Duration::from_millis(600 + 10 * n)));
        }
        assert!((50..=51).contains(&taken), "{taken} in ten seconds");
        assert!(bucket.take(1, start + Duration::from_secs(3600)));
        assert_eq!(bucket.ready(), start + Duration::from_secs(3600), "no more than the burst");
    }
}
