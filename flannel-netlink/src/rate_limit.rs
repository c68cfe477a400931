use std::time::Duration;

use tokio::time::Instant;

/// How often something may be done: so many times at once, and one more with each interval that passes.
///
/// In any time `t` it is done at most `burst + t / interval` times.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    burst: u32,
    interval: Duration,
    /// When all that was done is paid for.
    paid_at: Option<Instant>,
}

impl RateLimit {
    /// The limit of repairs against somebody who keeps breaking something: 20 at once, and 20 a second for as long as it goes on.
    /// So whoever breaks it ten times a second finds it whole each time, and a fault that comes alone never waits.
    pub const REPAIRS: Self = Self::new(20, Duration::from_millis(50));

    /// `burst` times at once, and one more with each `interval`.
    pub const fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, paid_at: None }
    }

    /// When it may be done again; `None` for now.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let credit = self.interval * self.burst.saturating_sub(1);
        self.paid_at.and_then(|paid| paid.checked_sub(credit)).filter(|due| *due > now)
    }

    /// Notes that it is done.
    pub fn done(&mut self, now: Instant) {
        self.paid_at = Some(self.paid_at.map_or(now, |paid| paid.max(now)) + self.interval);
    }

    /// Whether it may be done `burst` times at once again.
    pub fn is_calm(&self, now: Instant) -> bool {
        self.paid_at.is_none_or(|paid| paid <= now)
    }
}

/// Which lines of one kind are logged: 20 at once, then twelve a minute for as long as it goes on; and of many that come together five,
/// such as when somebody flushes a whole table. That is enough to see what happens, and too little to fill a disk.
#[derive(Clone, Debug)]
pub struct LogLimit {
    rate_limit: RateLimit,
    left_out: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { rate_limit: RateLimit::new(20, Duration::from_secs(5)), left_out: 0 }
    }
}

impl LogLimit {
    /// How many were left out before this line, if it is to be logged.
    pub fn allows(&mut self, now: Instant) -> Option<u64> {
        if self.rate_limit.due(now).is_some() {
            self.left_out += 1;
            return None;
        }
        self.rate_limit.done(now);
        Some(std::mem::take(&mut self.left_out))
    }

    /// Which of these are to be logged, each with how many were left out before it.
    pub fn choose<'a, T>(&mut self, lines: &'a [T], now: Instant) -> Vec<(&'a T, u64)> {
        let mut chosen = Vec::new();
        for line in lines {
            if chosen.len() == MOST_AT_ONCE {
                self.left_out += 1;
            } else if let Some(left_out) = self.allows(now) {
                chosen.push((line, left_out));
            }
        }
        chosen
    }
}

const MOST_AT_ONCE: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_lines_are_logged_and_then_a_few_with_the_number_of_the_others() {
        let flush: Vec<_> = (0..100).collect();
        let mut log = LogLimit::default();
        assert_eq!(log.choose(&flush, Instant::now()).len(), MOST_AT_ONCE);
        assert_eq!(log.choose(&flush[..1], Instant::now()), [(&0, 95)]);
        let mut said = 0;
        for _ in 0..6000 {
            said += log.choose(&flush[..1], Instant::now()).len();
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((130..=140).contains(&said), "{said} lines in 10 minutes");
        assert!(log.left_out > 0);
    }

    /// How often it is done by somebody who tries every `interval` for 10 s.
    async fn done(interval: Duration) -> u32 {
        let (mut rate_limit, start, mut count) = (RateLimit::REPAIRS, Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(10) {
            let now = Instant::now();
            match rate_limit.due(now) {
                None => {
                    rate_limit.done(now);
                    count += 1;
                }
                Some(due) => assert!(due - now <= Duration::from_millis(50), "never late"),
            }
            tokio::time::advance(interval).await;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn ten_a_second_never_wait_and_a_flood_is_bounded() {
        assert_eq!(done(Duration::from_millis(100)).await, 100);
        let flood = done(Duration::from_millis(1)).await;
        assert!((215..=220).contains(&flood), "{flood}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_calm_the_whole_burst_is_free_again() {
        let mut rate_limit = RateLimit::new(3, Duration::from_secs(1));
        for _ in 0..3 {
            assert_eq!(rate_limit.due(Instant::now()), None);
            rate_limit.done(Instant::now());
        }
        let due = rate_limit.due(Instant::now()).expect("the burst is over");
        assert_eq!(due - Instant::now(), Duration::from_secs(1));
        assert!(!rate_limit.is_calm(Instant::now()));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(rate_limit.is_calm(Instant::now()));
        for _ in 0..3 {
            assert_eq!(rate_limit.due(Instant::now()), None);
            rate_limit.done(Instant::now());
        }
        assert!(rate_limit.due(Instant::now()).is_some());
    }
}
