//! Objects of which only metadata came, and that are read whole beside the watch.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    task::{Context, Poll},
};

use flannel_core::Backoff;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::Name;
use crate::{Client, RequestError, Resource};

/// What is still to be read. One that cannot be read, or only slowly, delays none that is known, and others only while four hang.
#[derive(Default)]
pub(super) struct IncompleteObjects {
    objects: BTreeMap<Name, Incomplete>,
    failures: u64,
}

struct Incomplete {
    /// When it is read, if it is not being read now.
    due: Instant,
    reading: Option<Reading>,
    /// Whether it changed while it was being read, so that what comes may be of before.
    changed: bool,
    backoff: Backoff,
}

type Outcome = Result<Vec<u8>, RequestError>;
type Reading = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl IncompleteObjects {
    /// Has an object read, again if it is being read already. Failures are followed by waits of `backoff`.
    pub(super) fn insert(&mut self, name: Name, backoff: &Backoff) {
        let object = self.objects.entry(name).or_insert_with(|| Incomplete {
            due: Instant::now(),
            reading: None,
            changed: false,
            backoff: backoff.clone(),
        });
        object.changed = object.reading.is_some();
    }

    /// Stops reading an object.
    pub(super) fn remove(&mut self, name: &str) {
        self.objects.remove(name);
    }

    pub(super) fn clear(&mut self) {
        self.objects.clear();
    }

    /// The next object that was read; never, while there is none to read. That one has gone, the watch says.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call goes on.
    pub(super) async fn next(&mut self, client: &Client, resource: &Resource) -> (Name, Vec<u8>) {
        loop {
            let due = self.start(client, resource);
            let done = tokio::select! {
                done = poll_fn(|cx| self.poll(cx)) => Some(done),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            if let Some((name, outcome)) = done
                && let Some(json) = self.finish(&name, outcome)
            {
                return (name, json);
            }
        }
    }

    /// Starts what is due, as far as there is room; returns when the next one is.
    fn start(&mut self, client: &Client, resource: &Resource) -> Option<Instant> {
        let room = CONCURRENT - self.objects.values().filter(|it| it.reading.is_some()).count();
        let mut waiting: Vec<_> =
            self.objects.iter_mut().filter(|(_, object)| object.reading.is_none()).collect();
        waiting.sort_by_key(|(_, object)| object.due);
        let now = Instant::now();
        let mut waiting = waiting.into_iter().take(room).peekable();
        while let Some((name, object)) = waiting.next_if(|(_, object)| object.due <= now) {
            let (client, resource, name) =
                (client.clone(), resource.clone().of_all(), name.clone());
            object.reading = Some(Box::pin(async move { client.get(&resource, &name).await }));
        }
        waiting.next().map(|(_, object)| object.due)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Name, Outcome)> {
        for (name, object) in &mut self.objects {
            if let Some(reading) = &mut object.reading
                && let Poll::Ready(outcome) = reading.as_mut().poll(cx)
            {
                object.reading = None;
                return Poll::Ready((name.clone(), outcome));
            }
        }
        Poll::Pending
    }

    fn finish(&mut self, name: &str, outcome: Outcome) -> Option<Vec<u8>> {
        let object = self.objects.get_mut(name)?;
        let is_again = std::mem::take(&mut object.changed);
        match outcome {
            Err(error) if !error.is_not_found() => {
                let pause = object.backoff.after_failure(RandomState::new().hash_one(()));
                object.due = Instant::now() + pause.max(error.retry_after().unwrap_or_default());
                self.failures += 1;
                let (failures, reason) = (self.failures, &error.reason);
                // Neither one that fails again and again nor many of them should fill the log.
                match failures.is_power_of_two() {
                    true => {
                        warn!(failures, "{error}, retrying, it is not known until then: {reason}")
                    }
                    false => debug!(failures, "{error}, retrying: {reason}"),
                }
                None
            }
            outcome => {
                if is_again {
                    object.due = Instant::now();
                } else {
                    self.objects.remove(name);
                }
                outcome.ok()
            }
        }
    }
}

/// How many objects are read at a time: many may be new at once, and each takes a connection.
const CONCURRENT: usize = 4;
