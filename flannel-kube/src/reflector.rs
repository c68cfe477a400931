//! Follows all objects of one kind, and keeps a part of each.

mod incomplete;
mod projection;
mod snapshot;

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use flannel_core::Backoff;
use futures::FutureExt;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::{
    Client, RequestError, Resource, Verb,
    client::Call,
    error::Reason,
    objects::MetadataOf,
    watch::{WatchEvent, WatchStream},
};
use incomplete::IncompleteObjects;
pub use projection::{Merged, Projection};

/// How a reflector works.
#[derive(Clone, Debug)]
pub struct ReflectorOptions {
    /// Follow metadata only after the first snapshot: much less of what changes all the time is sent then.
    pub metadata_only: bool,
    /// Ask for protobuf, which only Nodes are read from: fewer bytes, and less work for both ends. Servers that have none send JSON.
    pub protobuf: bool,
    /// How long events may wait after one that changed nothing of what is kept. Most events are such heartbeats; read together they
    /// cost a fraction of what it costs to wake up for each.
    pub lull: Duration,
    /// The longest time without a line before a stream counts as dead: servers send a bookmark about every minute.
    pub quiet_limit: Duration,
    /// How many objects a page has, from servers that do not stream lists.
    pub page: u32,
    /// Waits between failures.
    pub backoff: Backoff,
}

/// Follows all objects of one kind. It begins with a complete snapshot, and goes on for ever: after an error it waits, and resumes
/// where it was if the server still can, else with another snapshot.
pub struct Reflector<P: Projection> {
    client: Client,
    resource: Resource,
    projection: P,
    options: ReflectorOptions,
    objects: BTreeMap<Arc<str>, P::Kept>,
    phase: Phase,
    /// Whether the server streams lists, as far as is known.
    streams_lists: bool,
    /// Objects of which only the metadata came, and that is not enough.
    incomplete: IncompleteObjects,
    /// Whether an error was told, and not yet that it is over.
    failed: bool,
    /// The version behind which a stream said last what it should not.
    failed_behind: Option<String>,
    backoff: Backoff,
    from: Instant,
    /// Whether what came last changed nothing, and until when the stream is not looked at for that.
    is_idle: bool,
    lull: Option<Instant>,
    malformed: u64,
}

/// What changed. What it is now, [`Reflector::objects`] says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reflection<K> {
    /// The object with this name has gone; it was this.
    Deleted(Arc<str>, K),
    /// Anything may have changed.
    Reset,
    /// The object with this name is new, or was this.
    Upserted(Arc<str>, Option<K>),
}

type Name = Arc<str>;

enum Phase {
    Snapshot,
    Watch { version: String, stream: Option<Box<WatchStream>>, since: Instant },
}

/// What a turn of the loop came to.
enum Turn<K> {
    Again,
    Changed(Reflection<K>),
}

impl Default for ReflectorOptions {
    fn default() -> Self {
        Self {
            metadata_only: false,
            protobuf: false,
            lull: Duration::ZERO,
            quiet_limit: Duration::from_secs(90),
            page: 500,
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(15)),
        }
    }
}

impl<P: Projection> Reflector<P> {
    /// A reflector of the objects of `resource`. Nothing is asked for before [`next`](Self::next).
    pub fn new(
        client: Client,
        resource: Resource,
        projection: P,
        options: ReflectorOptions,
    ) -> Self {
        Self {
            client,
            resource,
            projection,
            backoff: options.backoff.clone(),
            options,
            objects: BTreeMap::new(),
            phase: Phase::Snapshot,
            streams_lists: true,
            incomplete: IncompleteObjects::default(),
            failed: false,
            failed_behind: None,
            from: Instant::now(),
            is_idle: false,
            lull: None,
            malformed: 0,
        }
    }

    /// What is kept of each object, by name. Empty before the first [`Reflection::Reset`].
    pub fn objects(&self) -> &BTreeMap<Arc<str>, P::Kept> {
        &self.objects
    }

    /// How many times an object was not what it should be.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Waits for the next change. The first one is a [`Reflection::Reset`]; there is one too when the server answers again after an
    /// error.
    ///
    /// # Errors
    ///
    /// What keeps the server from answering. The next call goes on, after a pause.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it; a snapshot that is not complete yet begins anew.
    pub async fn next(&mut self) -> Result<Reflection<P::Kept>, RequestError> {
        loop {
            if self.from > Instant::now() {
                sleep_until(self.from).await;
            }
            match self.turn().await {
                Ok(Turn::Again) => {}
                Ok(Turn::Changed(change)) => return Ok(change),
                Err(error) => {
                    self.pause(error.retry_after());
                    self.failed = true;
                    return Err(error);
                }
            }
        }
    }

    async fn turn(&mut self) -> Result<Turn<P::Kept>, RequestError> {
        if let Phase::Snapshot = self.phase {
            let snapshot = self.snapshot().await?;
            self.objects = snapshot.objects.into_iter().collect();
            self.incomplete.clear();
            self.phase = Phase::Watch {
                version: snapshot.version,
                stream: snapshot.stream.map(Box::new),
                since: Instant::now(),
            };
            self.failed = false;
            return Ok(Turn::Changed(Reflection::Reset));
        }
        let Phase::Watch { version, stream, since } = &mut self.phase else {
            return Ok(Turn::Again);
        };
        let Some(open) = stream else {
            let version = version.clone();
            return self.resume(version).await;
        };
        let Some(event) = open.event() else {
            let (is_idle, lull) = (self.is_idle, &mut self.lull);
            let limit = self.options.quiet_limit;
            let receive = async {
                if is_idle && lull.is_none() {
                    // What is there already waits for nothing.
                    if let Some(received) = open.receive(limit).now_or_never() {
                        return received;
                    }
                    open.rest();
                    *lull = Some(Instant::now() + self.options.lull);
                }
                if let Some(end) = *lull {
                    sleep_until(end).await;
                }
                open.receive(limit).await
            };
            let (received, read) = tokio::select! {
                received = receive => (Some(received), None),
                read = self.incomplete.next(&self.client, &self.resource) => (None, Some(read)),
            };
            if let Some((name, object)) = read {
                return Ok(self.complete(name, &object));
            }
            (self.is_idle, self.lull) = (false, None);
            match received {
                Some(Ok(false)) => {
                    // Servers end watches after some minutes. One that does at once should not be asked all the time.
                    let is_short = since.elapsed() < Duration::from_secs(1);
                    *stream = None;
                    if is_short {
                        self.pause(None);
                    }
                }
                // A server that restarts breaks all streams. If it is there again soon, there is nothing to tell.
                Some(Err(RequestError { reason: Reason::Broken(_), .. })) => {
                    *stream = None;
                    self.pause(None);
                }
                Some(Err(error)) => {
                    // A server that was restored from a backup says nothing to who goes on from after that.
                    match open.has_spoken() {
                        true => *stream = None,
                        false => self.phase = Phase::Snapshot,
                    }
                    return Err(error);
                }
                Some(Ok(true)) | None => {}
            }
            return Ok(Turn::Again);
        };
        let (is_deleted, object) = match event {
            Err(error) => {
                let error = open.failed(Reason::Decode(error));
                *stream = None;
                self.goes_no_further();
                return Err(error);
            }
            Ok(WatchEvent::Error(status)) => {
                let begins_anew = status.is_expired() || status.is_from_the_future;
                let is_overload = status.code == 429;
                let error = open.failed(Reason::Status(status));
                *stream = None;
                if begins_anew {
                    return Ok(self.begin_anew(&error));
                }
                if !is_overload {
                    self.goes_no_further();
                }
                return Err(error);
            }
            Ok(WatchEvent::Bookmark { version: now, .. }) => {
                if !now.is_empty() {
                    *version = now;
                }
                self.backoff.reset();
                return Ok(Turn::Again);
            }
            Ok(WatchEvent::Deleted(object)) => (true, object),
            Ok(WatchEvent::Upserted(object)) => (false, object),
        };
        self.backoff.reset();
        let Ok(MetadataOf { metadata }) = MetadataOf::read(object) else {
            self.malformed += 1;
            return Ok(Turn::Again);
        };
        version.clear();
        version.push_str(&metadata.resource_version);
        let name: Name = (&*metadata.name).into();
        if is_deleted {
            self.incomplete.remove(&name);
            let before = self.objects.remove(&name);
            return Ok(before
                .map_or(Turn::Again, |before| Turn::Changed(Reflection::Deleted(name, before))));
        }
        let kept = match self.options.metadata_only {
            true => Ok(self.projection.merge(&name, &metadata, self.objects.get(&name))),
            false => self.projection.project(&name, object).map(Merged::Complete),
        };
        match kept {
            Ok(Merged::Complete(kept)) => {
                self.incomplete.remove(&name);
                Ok(self.upsert(name, kept))
            }
            Ok(Merged::Incomplete) => {
                self.incomplete.insert(name, &self.options.backoff);
                Ok(Turn::Again)
            }
            Err(error) => Ok(self.malformed_object(name, &error)),
        }
    }

    /// Takes an object that was read whole.
    fn complete(&mut self, name: Name, object: &[u8]) -> Turn<P::Kept> {
        let projected = str::from_utf8(object)
            .map_err(serde::de::Error::custom)
            .and_then(|object| self.projection.project(&name, object));
        match projected {
            Ok(kept) => self.upsert(name, kept),
            Err(error) => self.malformed_object(name, &error),
        }
    }

    /// Follows what happens after `version`.
    async fn resume(&mut self, version: String) -> Result<Turn<P::Kept>, RequestError> {
        let seconds = (LONGEST_WATCH + RandomState::new().hash_one(()) % LONGEST_WATCH).to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &version),
            ("timeoutSeconds", &seconds),
        ];
        let mut call = Call::all(&self.resource, Verb::Watch, &query);
        call.accept = accepted(self.options.metadata_only, self.options.protobuf);
        match WatchStream::open(&self.client, call).await {
            Ok(stream) => {
                let since = Instant::now();
                self.phase = Phase::Watch { version, stream: Some(Box::new(stream)), since };
                if std::mem::take(&mut self.failed) {
                    return Ok(Turn::Changed(Reflection::Reset));
                }
                Ok(Turn::Again)
            }
            Err(error) => {
                let Some(status) = error.status() else { return Err(error) };
                if status.code == 406 && self.options.metadata_only {
                    self.options.metadata_only = false;
                    return Ok(Turn::Again);
                }
                let begins_anew = status.is_expired()
                    || status.is_from_the_future
                    || matches!(status.code, 400 | 404 | 422);
                if begins_anew { Ok(self.begin_anew(&error)) } else { Err(error) }
            }
        }
    }

    /// The server said what it should not. If it does so twice behind one version, it will again, and all objects are read anew.
    fn goes_no_further(&mut self) {
        let Phase::Watch { version, .. } = &self.phase else { return };
        let version = Some(version.clone());
        if self.failed_behind == version {
            self.phase = Phase::Snapshot;
        }
        self.failed_behind = version;
    }

    /// The watch cannot go on where it was.
    fn begin_anew(&mut self, error: &RequestError) -> Turn<P::Kept> {
        debug!(%error, "the watch cannot go on, reading all objects again");
        self.phase = Phase::Snapshot;
        self.pause(error.retry_after());
        Turn::Again
    }

    fn upsert(&mut self, name: Name, kept: P::Kept) -> Turn<P::Kept> {
        match self.objects.get_mut(&name) {
            Some(known) if *known == kept => {
                self.is_idle = !self.options.lull.is_zero();
                Turn::Again
            }
            Some(known) => {
                let before = std::mem::replace(known, kept);
                Turn::Changed(Reflection::Upserted(name, Some(before)))
            }
            None => {
                self.objects.insert(name.clone(), kept);
                Turn::Changed(Reflection::Upserted(name, None))
            }
        }
    }

    fn malformed_object(&mut self, name: Name, error: &serde_json::Error) -> Turn<P::Kept> {
        self.note_malformed(&name, error);
        let before = self.objects.remove(&name);
        before.map_or(Turn::Again, |before| Turn::Changed(Reflection::Deleted(name, before)))
    }

    fn note_malformed(&mut self, name: &str, error: &serde_json::Error) {
        self.malformed += 1;
        // One that changes all the time should not fill the log.
        if self.malformed.is_power_of_two() {
            warn!(count = self.malformed, "{} {name} is ignored: {error}", self.resource);
        }
    }

    fn pause(&mut self, at_least: Option<Duration>) {
        let pause = self.backoff.after_failure(RandomState::new().hash_one(()));
        self.from = Instant::now() + pause.max(at_least.unwrap_or_default());
    }
}

impl<P: Projection> fmt::Debug for Reflector<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reflector")
            .field("resource", &self.resource)
            .field("objects", &self.objects.len())
            .finish_non_exhaustive()
    }
}

/// What a watch accepts.
fn accepted(metadata_only: bool, protobuf: bool) -> &'static str {
    match (metadata_only, protobuf) {
        (false, false) => "application/json",
        (false, true) => "application/vnd.kubernetes.protobuf,application/json",
        (true, false) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        (true, true) => {
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,\
             application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
        }
    }
}

/// Half of the longest time that a watch is asked for, in seconds.
const LONGEST_WATCH: u64 = 300;
