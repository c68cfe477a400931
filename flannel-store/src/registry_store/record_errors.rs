//! Saying once, and not too often, that an entry is no lease.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;

use crate::registry::{Record, RecordError};

/// Counts skipped entries, and logs each state of each of them once.
#[derive(Debug, Default)]
pub(crate) struct RecordErrors {
    count: AtomicU64,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    seen: BTreeMap<String, String>,
    minute: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl RecordErrors {
    /// Counts one skipped record, and logs it unless that was said before.
    pub(crate) fn note(&self, record: &Record, reason: &RecordError) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let reason = reason.to_string();
        let mut log = self.log.lock().expect("nothing panics while it is locked");
        if let Some(suppressed) = log.permits(&record.key, &reason, Instant::now()) {
            warn!(key = record.key, reason, suppressed, "skipping an entry that is no lease");
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Log {
    /// Whether to say it, with how many lines were not written since the last one.
    fn permits(&mut self, key: &str, reason: &str, now: Instant) -> Option<u64> {
        if self.seen.get(key).is_some_and(|said| said == reason) {
            return None;
        }
        if self.minute.is_none_or(|start| now - start >= Duration::from_secs(60)) {
            self.minute = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES_PER_MINUTE {
            self.suppressed += 1;
            return None;
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(key.into(), reason.into());
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Enough to see what is going on, and too few to fill a disk.
const LINES_PER_MINUTE: u32 = 10;

/// Entries whose state was said; a bound for hostile stores.
const REMEMBERED: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_entry_is_reported_once_and_a_flood_is_cut() {
        let (mut log, start) = (Log::default(), Instant::now());
        assert_eq!(log.permits("a", "garbage", start), Some(0));
        assert_eq!(log.permits("a", "garbage", start), None);
        assert_eq!(log.permits("a", "other garbage", start), Some(0));
        let said = (0..100).filter(|n| log.permits(&format!("k{n}"), "x", start).is_some());
        assert_eq!(said.count(), 8);
        let later = start + Duration::from_secs(60);
        assert_eq!(log.permits("k99", "x", later), Some(92));
        for n in 0..10_000 {
            log.permits(&n.to_string(), "x", later + Duration::from_secs(6 * n));
        }
        assert!(log.seen.len() <= REMEMBERED);
    }
}
