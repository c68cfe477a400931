//! Growing, jittered waits between attempts.

use std::time::Duration;

/// How long to wait after each failure in a row: doubling from a shortest to a longest wait, each cut by up to half at random
/// so that nodes that failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from `shortest` to `longest`.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, failures: 0 }
    }

    /// The wait after one more failure. `random` is any number.
    pub fn after_failure(&mut self, random: u64) -> Duration {
        let doubled = self.shortest.saturating_mul(1 << self.failures.min(31)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(0.5 + (random as f64 / u64::MAX as f64) / 2.0)
    }

    /// The same, started over, with waits of `longest` at most.
    pub fn limited_to(&self, longest: Duration) -> Self {
        Self::new(self.shortest.min(longest), self.longest.min(longest))
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_double_up_to_the_longest_and_start_over(
            randoms in proptest::collection::vec(any::<u64>(), 1..80),
        ) {
            let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(5));
            let mut backoff = Backoff::new(shortest, longest);
            let mut full = shortest;
            for random in randoms {
                let wait = backoff.after_failure(random);
                prop_assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
                full = (full * 2).min(longest);
            }
            backoff.reset();
            prop_assert!(backoff.after_failure(0) <= shortest);
        }
    }
}
