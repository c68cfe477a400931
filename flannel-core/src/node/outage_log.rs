//! How often a failure that goes on is logged: at once, every minute, and when it is over.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::fault::Activity;

/// The activities that fail now.
#[derive(Debug, Default)]
pub(super) struct OutageLog(BTreeMap<Activity, Outage>);

#[derive(Debug)]
struct Outage {
    began: Instant,
    logged: Instant,
    failures: u64,
}

/// What there is to log about a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failed {
    /// It is the first one.
    Begins,
    /// It has failed so many times for so long, and no line was logged for a minute.
    GoesOn { failures: u64, lasted: Duration },
    /// Nothing: a line was logged less than a minute ago.
    Quiet,
}

impl OutageLog {
    /// Counts a failure of `activity` at `now`.
    pub(super) fn failed(&mut self, activity: Activity, now: Instant) -> Failed {
        let Some(outage) = self.0.get_mut(&activity) else {
            self.0.insert(activity, Outage { began: now, logged: now, failures: 1 });
            return Failed::Begins;
        };
        outage.failures += 1;
        if now - outage.logged < LINE_EVERY {
            return Failed::Quiet;
        }
        outage.logged = now;
        Failed::GoesOn { failures: outage.failures, lasted: now - outage.began }
    }

    /// Ends the outage of `activity`; returns how often it failed and for how long, if it did.
    pub(super) fn succeeded(
        &mut self,
        activity: Activity,
        now: Instant,
    ) -> Option<(u64, Duration)> {
        self.0.remove(&activity).map(|outage| (outage.failures, now - outage.began))
    }
}

/// How often a failure that goes on is logged.
const LINE_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_a_line_when_it_begins_one_a_minute_and_one_when_it_ends() {
        let (mut log, start) = (OutageLog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(log.succeeded(Activity::Watch, start), None);
        assert_eq!(log.failed(Activity::Watch, start), Failed::Begins);
        let lines = (1..=600).map(|second| log.failed(Activity::Watch, at(second)));
        let lines: Vec<_> = lines.filter(|line| *line != Failed::Quiet).collect();
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], Failed::GoesOn { failures: 61, lasted: LINE_EVERY });
        assert_eq!(log.failed(Activity::Renew, at(600)), Failed::Begins, "each by itself");
        let lasted = Some((601, Duration::from_secs(604)));
        assert_eq!(log.succeeded(Activity::Watch, at(604)), lasted);
        assert_eq!(log.failed(Activity::Watch, at(605)), Failed::Begins);
    }
}
