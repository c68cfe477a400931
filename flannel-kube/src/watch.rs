//! The stream of a watch: events, one at a time.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    Client, RequestError,
    client::{Answer, Call, LONGEST_OBJECT},
    error::{ApiStatus, Reason},
    frames::{Frames, LineTooLong},
    objects::MetadataOf,
};

/// A watch that is open. Dropping it ends it.
pub(crate) struct WatchStream {
    answer: Answer,
    frames: Frames,
    /// Whether anything has come.
    has_spoken: bool,
}

/// What one line of a watch says.
#[derive(Debug)]
pub(crate) enum WatchEvent<'a> {
    /// Nothing happened up to this version. The first one of a WatchList ends the initial objects.
    Bookmark { version: String, ends_initial: bool },
    /// The object has gone.
    Deleted(&'a str),
    /// The server ends the watch.
    Error(ApiStatus),
    /// The object is new or changed.
    Upserted(&'a str),
}

impl WatchStream {
    pub(crate) async fn open(client: &Client, call: Call) -> Result<Self, RequestError> {
        let answer = client.open(call).await?;
        Ok(Self { answer, frames: Frames::new(LONGEST_OBJECT), has_spoken: false })
    }

    /// Waits until there is a line; `false` if the server has closed the stream.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(crate) async fn receive(&mut self, limit: Duration) -> Result<bool, RequestError> {
        let Some(bytes) = self.answer.chunk(limit).await? else { return Ok(false) };
        self.has_spoken = true;
        self.frames.push(&bytes).map_err(|LineTooLong| {
            self.answer.failed(Reason::Oversized { limit: LONGEST_OBJECT })
        })?;
        Ok(true)
    }

    /// Whether anything has come since it was opened.
    pub(crate) fn has_spoken(&self) -> bool {
        self.has_spoken
    }

    /// The next event that has been received.
    pub(crate) fn event(&mut self) -> Option<Result<WatchEvent<'_>, serde_json::Error>> {
        self.frames.next().map(parse)
    }

    pub(crate) fn failed(&self, reason: Reason) -> RequestError {
        self.answer.failed(reason)
    }
}

/// What a line says.
pub(crate) fn parse(line: &[u8]) -> Result<WatchEvent<'_>, serde_json::Error> {
    let (kind, object) = match split(line) {
        Some(parts) => parts,
        None => {
            let Line { kind, object } = serde_json::from_slice(line)?;
            (kind, object.get())
        }
    };
    Ok(match kind {
        Kind::Added | Kind::Modified => WatchEvent::Upserted(object),
        Kind::Deleted => WatchEvent::Deleted(object),
        Kind::Error => WatchEvent::Error(ApiStatus::of_event(object)?),
        Kind::Bookmark => {
            let MetadataOf { metadata } = MetadataOf::read(object)?;
            let ends_initial =
                metadata.annotations.get(INITIAL_EVENTS_END).is_some_and(|value| value == "true");
            WatchEvent::Bookmark { version: metadata.resource_version.into_owned(), ends_initial }
        }
    })
}

/// The parts of a line as every API server writes it, without looking at the object.
fn split(line: &[u8]) -> Option<(Kind, &str)> {
    let line = str::from_utf8(line).ok()?.trim_ascii();
    let (kind, rest) = line.strip_prefix(r#"{"type":""#)?.split_once('"')?;
    let object = rest.strip_prefix(r#","object":"#)?.strip_suffix('}')?;
    let kind = match kind {
        "ADDED" => Kind::Added,
        "BOOKMARK" => Kind::Bookmark,
        "DELETED" => Kind::Deleted,
        "ERROR" => Kind::Error,
        "MODIFIED" => Kind::Modified,
        _ => return None,
    };
    Some((kind, object))
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Added,
    Bookmark,
    Deleted,
    Error,
    Modified,
}

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_an_api_server_sends() {
        let line = br#"{"type":"BOOKMARK","object":{"kind":"Node","apiVersion":"v1","metadata":{"resourceVersion":"7","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{}}}}"#;
        let WatchEvent::Bookmark { version, ends_initial } = parse(line).unwrap() else { panic!() };
        assert_eq!((version.as_str(), ends_initial), ("7", true));
        let line = br#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (8)","reason":"Expired","code":410}}"#;
        let WatchEvent::Error(status) = parse(line).unwrap() else { panic!() };
        assert!(status.is_expired());
        let WatchEvent::Deleted(object) =
            parse(br#"{"type":"DELETED","object":{"a":[1, 2]}}"#).unwrap()
        else {
            panic!()
        };
        assert_eq!(object, r#"{"a":[1, 2]}"#);
        let spaced = br#"{ "object": {"a":1}, "type": "ADDED" }"#;
        assert!(matches!(parse(spaced).unwrap(), WatchEvent::Upserted(r#"{"a":1}"#)));
        for line in [&b""[..], b"{}", br#"{"type":"OTHER","object":{}}"#, br#"{"type":"ADDED"}"#] {
            assert!(parse(line).is_err());
        }
    }
}
