//! Adaptive interrupt coalescing for a worker.
//!
//! A worker is faster than a sender of small packets. It would wait for each packet, be woken by the sender, and send the packet alone;
//! each of these costs several times as much as forwarding. Above a rate that no request-response exchange reaches, a worker therefore
//! pauses between bursts, as network cards do with interrupts.

use std::time::Duration;

/// The packet rate of one worker.
#[derive(Debug, Default)]
pub struct Coalescing {
    /// When the current window began.
    since: Duration,
    count: u32,
    is_fast: bool,
}

impl Coalescing {
    /// Counts the packets found by one poll at `now`.
    pub fn record(&mut self, found: usize, now: Duration) {
        self.count = self.count.saturating_add(u32::try_from(found).unwrap_or(u32::MAX));
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= WINDOW {
            self.is_fast = self.count > 0 && elapsed / self.count <= FAST;
            (self.count, self.since) = (0, now);
        }
    }

    /// How long to pause before the next poll.
    pub fn pause(&self) -> Option<Duration> {
        self.is_fast.then_some(PAUSE)
    }
}

/// Long enough to measure a rate, short enough to notice a change.
const WINDOW: Duration = Duration::from_millis(1);
/// The interval between packets below which a worker pauses: 30,000 packets a second. Request-response exchanges through the fastest
/// tunnel have a lower rate.
const FAST: Duration = Duration::from_nanos(33_333);
/// Ten to twenty packets arrive meanwhile at practical rates, far fewer than a device's queue holds. Half as long was measured to forward
/// a fifth fewer packets.
const PAUSE: Duration = Duration::from_micros(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// Whether there is a pause after 10 ms of packets at this distance in microseconds.
    fn pauses(distance: u64) -> bool {
        let mut coalescing = Coalescing::default();
        (1..=10_000 / distance).for_each(|n| coalescing.record(1, micros(n * distance)));
        coalescing.pause().is_some()
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
        let mut coalescing = Coalescing::default();
        coalescing.record(100, micros(1000));
        assert_eq!(coalescing.pause(), Some(PAUSE));
        coalescing.record(1, micros(1500));
        assert_eq!(coalescing.pause(), Some(PAUSE));
        coalescing.record(1, micros(2000));
        assert_eq!(coalescing.pause(), None);
        coalescing.record(usize::MAX, micros(1_000_000_000));
        assert_eq!(coalescing.pause(), Some(PAUSE));
        coalescing.record(1, micros(9_000_000_000));
        assert_eq!(coalescing.pause(), None, "after a long silence");
    }
}
