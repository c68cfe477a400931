//! How fast packets come, and whether it is better to let some of them gather.
//!
//! A worker is faster than whoever sends small packets one by one. It would wait for each of them, have itself woken by its sender,
//! and send it alone; each of these costs several times what carrying the packet does. So above a rate that no exchange of
//! questions and answers has, a worker pauses between bursts, as network cards do with their interrupts.

use std::time::Duration;

/// What one worker knows about its rate.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When counting began, as a time since some beginning.
    since: Duration,
    count: u32,
    is_fast: bool,
}

impl Pace {
    /// Counts what one look for packets has found by `now`.
    pub(super) fn note(&mut self, found: usize, now: Duration) {
        self.count = self.count.saturating_add(u32::try_from(found).unwrap_or(u32::MAX));
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= WINDOW {
            self.is_fast = self.count > 0 && elapsed / self.count <= FAST;
            (self.count, self.since) = (0, now);
        }
    }

    /// How long to look away before the next look.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.is_fast.then_some(PAUSE)
    }
}

/// Long enough for a rate, short enough to notice soon that it has changed.
const WINDOW: Duration = Duration::from_millis(1);
/// The time between packets from which on they gather: 30,000 a second. Pods that wait for each other's answers through the fastest
/// tunnel exchange fewer.
const FAST: Duration = Duration::from_nanos(33_333);
/// Ten to twenty packets gather at the rates that there are, and the queue of a device holds many times as many. Half of it was
/// measured to carry a fifth less.
const PAUSE: Duration = Duration::from_micros(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// Whether there is a pause after packets that came at this distance from each other for 10 ms.
    fn pauses(distance: u64) -> bool {
        let mut pace = Pace::default();
        (1..=10_000 / distance).for_each(|n| pace.note(1, micros(n * distance)));
        pace.pause().is_some()
    }

    #[test]
    fn only_fast_packets_gather() {
        assert!(pauses(5));
        assert!(pauses(30));
        assert!(!pauses(40));
        assert!(!pauses(100), "questions and answers");
    }

    #[test]
    fn it_ends_when_packets_come_slower() {
        let mut pace = Pace::default();
        pace.note(100, micros(1000));
        assert_eq!(pace.pause(), Some(PAUSE));
        pace.note(1, micros(1500));
        assert_eq!(pace.pause(), Some(PAUSE));
        pace.note(1, micros(2000));
        assert_eq!(pace.pause(), None);
        pace.note(usize::MAX, micros(1_000_000_000));
        assert_eq!(pace.pause(), Some(PAUSE));
        pace.note(1, micros(9_000_000_000));
        assert_eq!(pace.pause(), None, "after a long silence");
    }
}
