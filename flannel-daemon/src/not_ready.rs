//! For how long a node that was ready is not.

use tokio::time::Instant;

/// Since when a node that was ready is not. One that starts while its store is away may serve pods all the same, with what it left
/// when it was stopped.
#[derive(Debug, Default)]
pub(crate) struct NotReady {
    was_ready: bool,
    since: Option<Instant>,
}

impl NotReady {
    /// Takes in how it is at `now`.
    pub(crate) fn note(&mut self, is_ready: bool, now: Instant) {
        self.was_ready |= is_ready;
        self.since = match is_ready {
            true => None,
            false => self.since.or_else(|| self.was_ready.then_some(now)),
        };
    }

    pub(crate) const fn since(&self) -> Option<Instant> {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_is_not_ready_since_it_was_ready_last() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let at = |seconds: u32| start + seconds * second;
        let mut not_ready = NotReady::default();
        for (seconds, is_ready, expected) in [
            (0, false, None),
            (100, false, None),
            (101, true, None),
            (102, false, Some(at(102))),
            (170, false, Some(at(102))),
            (171, true, None),
            (172, false, Some(at(172))),
        ] {
            not_ready.note(is_ready, at(seconds));
            assert_eq!(not_ready.since(), expected, "{seconds}");
        }
    }
}
