//! The first look at all objects: all of them or none.

use std::sync::Arc;

use super::{Projection, Reflector, accepted};
use crate::{
    RequestError, Verb,
    client::{Call, QUIET_LIMIT},
    error::Reason,
    objects::MetadataOf,
    watch::{WatchEvent, WatchStream},
};

/// All objects at one moment.
pub(super) struct Snapshot<K> {
    /// Of several with one name the last counts. A map that grew with them would be half empty.
    pub(super) objects: Vec<(Arc<str>, K)>,
    /// That moment.
    pub(super) version: String,
    /// What follows, if it is on the way already.
    pub(super) stream: Option<WatchStream>,
}

impl<P: Projection> Reflector<P> {
    pub(super) async fn snapshot(&mut self) -> Result<Snapshot<P::Kept>, RequestError> {
        if self.streams_lists {
            match self.streamed().await {
                Err(error) if is_refusal(&error) => {
                    tracing::debug!(%error, "the API server does not stream lists, reading pages");
                    self.streams_lists = false;
                }
                outcome => return outcome,
            }
        }
        self.paged().await
    }

    /// By a watch that begins with all objects.
    async fn streamed(&mut self) -> Result<Snapshot<P::Kept>, RequestError> {
        let seconds = super::LONGEST_WATCH.to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("sendInitialEvents", "true"),
            ("resourceVersionMatch", "NotOlderThan"),
            ("timeoutSeconds", &seconds),
        ];
        let mut call = Call::all(&self.resource, Verb::Watch, &query);
        call.accept = accepted(false, self.options.protobuf);
        let mut stream = WatchStream::open(&self.client, call).await?;
        let mut objects = Vec::new();
        loop {
            let Some(event) = stream.event() else {
                if stream.receive(QUIET_LIMIT).await? {
                    continue;
                }
                let early = serde::de::Error::custom("the stream ended before the objects did");
                return Err(stream.failed(Reason::Decode(early)));
            };
            match event {
                Err(error) => return Err(stream.failed(Reason::Decode(error))),
                Ok(WatchEvent::Upserted(object)) => self.keep(&mut objects, object),
                Ok(WatchEvent::Deleted(object)) => {
                    if let Ok(MetadataOf { metadata }) = MetadataOf::read(object) {
                        objects.retain(|(name, _)| **name != *metadata.name);
                    }
                }
                Ok(WatchEvent::Bookmark { ends_initial: false, .. }) => {}
                Ok(WatchEvent::Bookmark { version, ends_initial: true }) => {
                    let stream = (!self.options.metadata_only).then_some(stream);
                    return Ok(Snapshot { objects, version, stream });
                }
                Ok(WatchEvent::Error(status)) => {
                    return Err(stream.failed(Reason::Status(status)));
                }
            }
        }
    }

    /// By pages.
    async fn paged(&mut self) -> Result<Snapshot<P::Kept>, RequestError> {
        let mut objects = Vec::new();
        let (client, resource) = (self.client.clone(), self.resource.clone());
        let page = self.options.page;
        let version = client.list(&resource, page, |item| self.keep(&mut objects, item)).await?;
        Ok(Snapshot { objects, version, stream: None })
    }

    fn keep(&mut self, objects: &mut Vec<(Arc<str>, P::Kept)>, object: &str) {
        let name = match MetadataOf::read(object) {
            Ok(MetadataOf { metadata }) => Arc::from(metadata.name),
            Err(error) => return self.note_malformed("of an unknown name", &error),
        };
        match self.projection.project(&name, object) {
            Ok(kept) => objects.push((name, kept)),
            Err(error) => self.note_malformed(&name, &error),
        }
    }
}

/// Whether the server cannot stream lists: it says so, or it never ends the initial objects.
fn is_refusal(error: &RequestError) -> bool {
    match &error.reason {
        Reason::Status(status) => matches!(status.code, 400 | 422),
        Reason::Silent { .. } => true,
        _ => false,
    }
}
