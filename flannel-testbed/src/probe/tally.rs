use std::{collections::BTreeMap, fmt, iter::Sum, time::Duration};

use tokio::time::Instant;

/// What a [`Stream`](super::Stream) counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct StreamReport {
    /// Probes sent, or refused by the sender's kernel for want of a route.
    pub sent: u64,
    /// Probes that were answered.
    pub received: u64,
    /// Probes whose answer is overdue by more than one second, or did not come before the stream was stopped.
    pub lost: u64,
    /// The longest time in which nothing was answered, from start to now. Without loss it is about one interval.
    pub longest_gap: Duration,
    /// The slowest answer.
    pub slowest: Duration,
}

impl fmt::Display for StreamReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent, {} received, {} lost, longest gap {:?}, slowest answer {:?}",
            self.sent, self.received, self.lost, self.longest_gap, self.slowest
        )
    }
}

impl Sum for StreamReport {
    fn sum<I: Iterator<Item = Self>>(reports: I) -> Self {
        reports.fold(Self::default(), |sum, report| Self {
            sent: sum.sent + report.sent,
            received: sum.received + report.received,
            lost: sum.lost + report.lost,
            longest_gap: sum.longest_gap.max(report.longest_gap),
            slowest: sum.slowest.max(report.slowest),
        })
    }
}

/// The books of a stream, as a plain function of what happened when.
#[derive(Debug)]
pub(super) struct Tally {
    pending: BTreeMap<u64, Instant>,
    last_answer: Instant,
    /// When the newest answered question was sent.
    newest_answered: Option<Instant>,
    report: StreamReport,
}

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pending: BTreeMap::new(),
            last_answer: now,
            newest_answered: None,
            report: StreamReport::default(),
        }
    }

    pub(super) fn sent(&mut self, sequence: u64, now: Instant) {
        self.report.sent += 1;
        self.pending.insert(sequence, now);
    }

    /// Counts an answer. A second answer to one question is ignored.
    pub(super) fn received(&mut self, sequence: u64, now: Instant) {
        let Some(sent_at) = self.pending.remove(&sequence) else {
            return;
        };
        let report = &mut self.report;
        report.received += 1;
        report.slowest = report.slowest.max(now - sent_at);
        report.longest_gap = report.longest_gap.max(now - self.last_answer);
        self.last_answer = now;
        self.newest_answered = self.newest_answered.max(Some(sent_at));
    }

    pub(super) fn report(&self, now: Instant) -> StreamReport {
        let overdue = |sent_at: &&Instant| now.duration_since(**sent_at) > OVERDUE;
        StreamReport {
            lost: self.pending.values().filter(overdue).count() as u64,
            longest_gap: self.report.longest_gap.max(now - self.last_answer),
            ..self.report
        }
    }

    /// As [`report`](Self::report), when no more answers will be taken.
    pub(super) fn final_report(&self) -> StreamReport {
        StreamReport { lost: self.pending.len() as u64, ..self.report }
    }

    pub(super) fn all_answered(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether a question that was sent after `moment` has been answered.
    pub(super) fn answered_since(&self, moment: Instant) -> bool {
        self.newest_answered.is_some_and(|sent_at| sent_at > moment)
    }
}

/// After this an answer is counted as lost until it comes after all.
pub(super) const OVERDUE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_outage_is_the_longest_gap_and_its_probes_are_lost() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        for sequence in 0..10 {
            let now = start + 50 * MS * sequence;
            tally.sent(sequence.into(), now);
            if !(3..6).contains(&sequence) {
                tally.received(sequence.into(), now + MS);
            }
        }
        let report = tally.report(start + 3000 * MS);
        assert_eq!((report.sent, report.received, report.lost), (10, 7, 3));
        assert_eq!(report.slowest, MS);
        assert_eq!(report.longest_gap, 2549 * MS, "nothing came since the last answer");
        let report = tally.final_report();
        assert_eq!((report.lost, report.longest_gap), (3, 200 * MS));
    }

    #[test]
    fn an_answer_is_counted_once() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        tally.sent(1, start);
        tally.received(1, start + MS);
        tally.received(1, start + 2 * MS);
        tally.received(9, start + 2 * MS);
        let report = tally.final_report();
        assert_eq!((report.sent, report.received, report.lost), (1, 1, 0));
    }

    #[test]
    fn what_is_under_way_is_not_lost_yet() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        tally.sent(1, start);
        assert_eq!(tally.report(start + 1000 * MS).lost, 0);
        assert_eq!(tally.report(start + 1001 * MS).lost, 1);
        assert!(!tally.all_answered());
    }

    #[test]
    fn only_an_answer_to_a_later_question_shows_that_packets_flow_again() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        tally.sent(1, start + MS);
        tally.sent(2, start + 5 * MS);
        let healed = start + 3 * MS;
        tally.received(1, start + 7 * MS);
        assert!(!tally.answered_since(healed));
        tally.received(2, start + 8 * MS);
        assert!(tally.answered_since(healed));
    }
}
