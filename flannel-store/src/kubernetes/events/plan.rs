//! Which event is to be written next, and when: a plain function of what is the case and of what was written.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use flannel_core::Notice;
use tokio::time::Instant;

/// What is the case, and what was written of it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    reasons: BTreeMap<&'static str, Known>,
    /// When the last events were written.
    recent: VecDeque<Instant>,
    /// How much later than possible this node writes.
    offset: Duration,
}

/// What is known of one reason.
#[derive(Debug)]
struct Known {
    /// What is the case, and since when; `None` when it is not.
    present: Option<(Notice, Instant)>,
    /// A part of the event's name.
    first: String,
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    count: u32,
    message: String,
    at: Instant,
    /// It was not the case for some time since.
    ended: bool,
}

/// An event to be written: a new one, or one that is counted once more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Write {
    pub(super) reason: &'static str,
    /// The event's name, after that of the node.
    pub(super) name: String,
    pub(super) message: String,
    pub(super) is_warning: bool,
    /// 1 for a new one.
    pub(super) count: u32,
}

impl Plan {
    /// A plan for a node that writes by this part of [`SPREAD`], from 0 to 1, later than possible.
    pub(super) fn new(part: f64) -> Self {
        Self { offset: SPREAD.mul_f64(part), ..Self::default() }
    }

    /// Takes note of what is the case.
    pub(super) fn observe(&mut self, notices: &[Notice], now: Instant, wall: SystemTime) {
        for notice in notices {
            let since_epoch = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let known = self.reasons.entry(notice.reason).or_insert_with(|| Known {
                present: None,
                first: format!(
                    "{}.{:x}",
                    notice.reason.to_ascii_lowercase(),
                    since_epoch.as_nanos()
                ),
                written: None,
            });
            let since = known.present.as_ref().map_or(now, |(_, since)| *since);
            known.present = Some((notice.clone(), since));
        }
        self.reasons.retain(|reason, known| {
            if !notices.iter().any(|notice| notice.reason == *reason) {
                known.present = None;
                if let Some(written) = &mut known.written {
                    written.ended = true;
                }
            }
            // Its event has expired.
            let is_forgotten =
                known.written.as_ref().is_none_or(|written| now - written.at > EXPIRY);
            known.present.is_some() || !is_forgotten
        });
    }

    /// What is to be written next, and from when on.
    pub(super) fn next(&self) -> Option<(Write, Instant)> {
        let room = self.recent.front().filter(|_| self.recent.len() >= MOST);
        let room = room.map(|oldest| *oldest + MINUTE);
        let due = self.reasons.iter().filter_map(|(reason, known)| {
            let (notice, from) = self.due(known)?;
            let write = Write {
                reason,
                name: known.first.clone(),
                message: notice.message.clone(),
                is_warning: notice.ends.is_none(),
                count: known.written.as_ref().map_or(1, |written| written.count.saturating_add(1)),
            };
            Some((write, room.map_or(from, |room| from.max(room))))
        });
        due.min_by_key(|(_, from)| *from)
    }

    /// When what is the case is written (again), if it is.
    fn due<'a>(&self, known: &'a Known) -> Option<(&'a Notice, Instant)> {
        let (notice, since) = known.present.as_ref()?;
        let told = |reason| self.reasons.get(reason).and_then(|it: &Known| it.written.as_ref());
        let lasted = *since + HOLD + self.offset;
        if let Some(ended) = notice.ends {
            // Once after each time that it began.
            let begun = told(ended)?.at;
            let is_told = known.written.as_ref().is_some_and(|written| written.at >= begun);
            return (!is_told).then_some((notice, lasted));
        }
        let from = match &known.written {
            None => lasted,
            Some(written) if written.ended || written.message != notice.message => {
                lasted.max(written.at + MINUTE * written.count.min(LONGEST_MINUTES))
            }
            Some(written) => written.at + REPEAT + REPEAT_SPREAD * self.offset,
        };
        Some((notice, from))
    }

    /// This was written.
    pub(super) fn written(&mut self, write: &Write, now: Instant) {
        if let Some(known) = self.reasons.get_mut(write.reason) {
            let message = write.message.clone();
            known.written = Some(Written { count: write.count, message, at: now, ended: false });
        }
        self.recent.push_back(now);
        while self.recent.len() > MOST {
            self.recent.pop_front();
        }
    }

    /// The event that was to be counted is not there any more: another one will be.
    pub(super) fn expired(&mut self, write: &Write) {
        if let Some(known) = self.reasons.get_mut(write.reason) {
            known.written = None;
            known.first.push('x');
        }
    }
}

/// How long something has to last: what is over sooner is not worth an event.
const HOLD: Duration = Duration::from_secs(10);
/// Over how long the events of all nodes are spread that one peer causes: 5,000 nodes send 250 a second.
const SPREAD: Duration = Duration::from_secs(20);
/// How often something that lasts is told again. The API server forgets events after an hour.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// By how many times more that is spread: over ten minutes.
const REPEAT_SPREAD: u32 = 30;
const EXPIRY: Duration = Duration::from_secs(60 * 60);
/// How many events are written in a minute at most, and of one reason not more than one.
const MOST: usize = 5;
const MINUTE: Duration = Duration::from_secs(60);
/// What keeps changing is counted less and less often: after one minute, two, three and so on, up to this.
const LONGEST_MINUTES: u32 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notice(reason: &'static str, message: &str) -> Notice {
        Notice { reason, message: message.into(), ends: None }
    }

    const UP: &str = "Up";
    const DOWN: &str = "Down";

    fn up() -> Notice {
        Notice { reason: UP, message: String::new(), ends: Some(DOWN) }
    }

    fn run(seconds: u64, notices: impl Fn(u64) -> Vec<Notice>) -> Vec<(u64, Write)> {
        run_plan(Plan::new(0.0), seconds, notices)
    }

    /// Lets a plan run by itself, second by second: what was written, and when.
    fn run_plan(
        mut plan: Plan,
        seconds: u64,
        notices: impl Fn(u64) -> Vec<Notice>,
    ) -> Vec<(u64, Write)> {
        let (start, mut all) = (Instant::now(), Vec::new());
        for second in 0..seconds {
            let now = start + Duration::from_secs(second);
            let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            plan.observe(&notices(second), now, wall);
            while let Some((write, at)) = plan.next()
                && at <= now
            {
                plan.written(&write, now);
                all.push((second, write));
            }
        }
        all
    }

    fn told(all: &[(u64, Write)]) -> Vec<(u64, &'static str, u32)> {
        all.iter().map(|(second, write)| (*second, write.reason, write.count)).collect()
    }

    #[test]
    fn what_lasts_is_told_and_counted_and_what_is_over_at_once_is_not() {
        let short = run(60, |second| match second {
            5..14 => vec![notice(DOWN, "x")],
            _ => vec![],
        });
        assert_eq!(told(&short), []);
        let long = run(4000, |_| vec![notice(DOWN, "x")]);
        assert_eq!(told(&long), [(10, DOWN, 1), (1810, DOWN, 2), (3610, DOWN, 3)]);
        assert!(long.iter().all(|(_, write)| write.name == long[0].1.name), "one event");
    }

    #[test]
    fn nodes_do_not_all_write_at_once() {
        for (part, expected) in [(0.0, [10, 1810]), (0.5, [20, 2120]), (1.0, [30, 2430])] {
            let all = run_plan(Plan::new(part), 2500, |_| vec![notice(DOWN, "x")]);
            assert_eq!(told(&all), [(expected[0], DOWN, 1), (expected[1], DOWN, 2)]);
        }
    }

    #[test]
    fn what_changes_or_comes_again_is_counted_less_and_less_often() {
        let changing = run(6000, |second| vec![notice(DOWN, &second.to_string())]);
        let times: Vec<_> = changing.iter().map(|(second, _)| *second).collect();
        let waits: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]) / 60).collect();
        assert_eq!(waits, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10, 10]);
        let again = run(200, |second| match second {
            0..20 | 100.. => vec![notice(DOWN, "x")],
            _ => vec![],
        });
        assert_eq!(told(&again), [(10, DOWN, 1), (110, DOWN, 2)]);
    }

    #[test]
    fn an_end_is_told_only_after_its_beginning() {
        assert_eq!(told(&run(60, |_| vec![up()])), []);
        let both = run(300, |second| match second {
            0..30 | 120..150 => vec![notice(DOWN, "x")],
            _ => vec![up()],
        });
        assert_eq!(told(&both), [(10, DOWN, 1), (40, UP, 1), (130, DOWN, 2), (160, UP, 2)]);
        assert!(both[0].1.is_warning && !both[1].1.is_warning);
    }

    #[test]
    fn an_event_that_has_expired_is_made_anew() {
        let mut plan = Plan::default();
        let start = Instant::now();
        plan.observe(&[notice(DOWN, "x")], start, SystemTime::UNIX_EPOCH);
        let (first, at) = plan.next().unwrap();
        plan.written(&first, at);
        plan.observe(&[notice(DOWN, "y")], at, SystemTime::UNIX_EPOCH);
        let (second, _) = plan.next().unwrap();
        assert_eq!((second.count, &second.name), (2, &first.name));
        plan.expired(&second);
        let (third, _) = plan.next().unwrap();
        assert_eq!(third.count, 1);
        assert_ne!(third.name, first.name);
        // An hour later nothing is known of it.
        plan.observe(&[], start + 2 * EXPIRY, SystemTime::UNIX_EPOCH);
        assert!(plan.reasons.is_empty());
    }

    proptest! {
        #[test]
        fn no_more_than_five_are_written_in_a_minute(
            notices in proptest::collection::vec((0..12_usize, 0..200_u64, 0..200_u64, any::<bool>()), 0..40),
        ) {
            const REASONS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
            let all = run(400, |second| {
                let present = notices.iter().filter(|(_, from, length, _)| (*from..from + length).contains(&second));
                let mut present: Vec<_> = present
                    .map(|(reason, from, _, changes)| {
                        let message = if *changes { second } else { *from };
                        notice(REASONS[*reason], &message.to_string())
                    })
                    .collect();
                present.dedup_by_key(|it| it.reason);
                present
            });
            for window in all.windows(6) {
                prop_assert!(window[5].0 >= window[0].0 + 60, "{window:?}");
            }
            for reason in REASONS {
                let own: Vec<_> = all.iter().filter(|(_, write)| write.reason == reason).collect();
                for pair in own.windows(2) {
                    prop_assert!(pair[1].0 >= pair[0].0 + 60 && pair[1].1.count == pair[0].1.count + 1, "{pair:?}");
                }
            }
        }
    }
}
