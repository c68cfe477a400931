//! One list for all that a starting node wants to know: what it had, what is free, who its peers are.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::registry::Snapshot;

/// What was listed last, until the first watch begins with it.
#[derive(Debug, Default)]
pub(crate) struct RecentList(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// A watch has begun, and knows better.
    Followed,
    Known(Instant, Snapshot),
    #[default]
    Nothing,
}

impl RecentList {
    /// Keeps a list, unless a watch has begun.
    pub(crate) fn keep(&self, snapshot: Snapshot) {
        let mut state = self.0.lock().expect("nothing panics while it is locked");
        if !matches!(*state, State::Followed) {
            *state = State::Known(Instant::now(), snapshot);
        }
    }

    /// Takes the list, unless it is old.
    pub(crate) fn take(&self) -> Option<Snapshot> {
        let mut state = self.0.lock().expect("nothing panics while it is locked");
        match *state {
            State::Followed => None,
            State::Known(..) | State::Nothing => std::mem::take(&mut *state).fresh(),
        }
    }

    /// The same, and keeps nothing from now on.
    pub(crate) fn take_for_good(&self) -> Option<Snapshot> {
        let mut state = self.0.lock().expect("nothing panics while it is locked");
        std::mem::replace(&mut *state, State::Followed).fresh()
    }
}

impl State {
    fn fresh(self) -> Option<Snapshot> {
        match self {
            Self::Known(at, snapshot) if at.elapsed() <= FRESH => Some(snapshot),
            _ => None,
        }
    }
}

/// More than lies between the steps of a start, and too little for a person to have reserved something in between.
const FRESH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_is_used_once_and_soon_and_not_after_a_watch() {
        let (recent, list) =
            (RecentList::default(), |revision| Snapshot { revision, ..Snapshot::default() });
        assert_eq!(recent.take(), None);
        recent.keep(list(1));
        recent.keep(list(2));
        assert_eq!(recent.take(), Some(list(2)));
        assert_eq!(recent.take(), None);
        recent.keep(list(3));
        tokio::time::advance(2 * FRESH).await;
        assert_eq!(recent.take(), None);
        recent.keep(list(4));
        assert_eq!(recent.take_for_good(), Some(list(4)));
        recent.keep(list(5));
        assert_eq!((recent.take(), recent.take_for_good()), (None, None));
    }
}
