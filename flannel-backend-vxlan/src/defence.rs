//! How a device is defended against somebody who keeps altering it.

use std::time::Duration;

use tokio::time::Instant;

/// The repairs of one device. The wait between them doubles while they follow each other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defence {
    last: Option<Instant>,
    repairs: u32,
}

impl Defence {
    /// When the next repair is due; `None` for at once.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let doublings = self.repairs.checked_sub(2)?;
        let wait = FIRST_WAIT.saturating_mul(1 << doublings.min(10)).min(LONGEST_WAIT);
        Some(self.last? + wait).filter(|due| *due > now)
    }

    /// Notes a repair.
    pub(crate) fn repaired(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.duration_since(last) > CALM) {
            self.repairs = 0;
        }
        self.last = Some(now);
        self.repairs = self.repairs.saturating_add(1);
    }

    /// Whether the other side will not give up.
    pub(crate) const fn is_hopeless(&self) -> bool {
        self.repairs >= ATTEMPTS
    }
}

/// So long without a repair, and the next one is immediate again.
const CALM: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Two repairs a second at most, and never more than half a second until things are right.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// After so many repairs in a row somebody else's choice counts. The waits between them add up to 350 ms, so that whoever sets an
/// address a few times while a device appears does not win, and whoever insists is followed within a second.
const ATTEMPTS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repairs_are_bounded_and_never_late() {
        let (mut defence, mut repairs) = (Defence::default(), 0);
        for _ in 0..1000 {
            let now = Instant::now();
            match defence.due(now) {
                None => {
                    defence.repaired(now);
                    repairs += 1;
                }
                Some(due) => assert!(due - now <= LONGEST_WAIT),
            }
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!((20..=26).contains(&repairs), "{repairs} in 10 s");
        assert!(defence.is_hopeless());
    }

    #[tokio::test(start_paused = true)]
    async fn after_calm_all_is_forgotten() {
        let mut defence = Defence::default();
        for _ in 0..ATTEMPTS {
            defence.repaired(Instant::now());
        }
        assert!(defence.is_hopeless() && defence.due(Instant::now()).is_some());
        tokio::time::advance(CALM + Duration::from_millis(1)).await;
        assert_eq!(defence.due(Instant::now()), None);
        defence.repaired(Instant::now());
        assert!(!defence.is_hopeless());
        assert_eq!(defence.due(Instant::now()), None, "the second one is immediate as well");
    }
}
