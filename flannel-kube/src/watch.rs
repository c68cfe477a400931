//! The stream of a watch: events, one at a time.

use std::time::Duration;

use serde::{Deserialize, de::Error as _};
use serde_json::value::RawValue;

use crate::{
    Client, RequestError,
    client::{Answer, Call, LONGEST_OBJECT},
    error::{ApiStatus, Reason},
    frames::{FrameKind, FrameTooLong, Frames},
    objects::MetadataOf,
    protobuf,
};

/// A watch that is open. Dropping it ends it.
pub(crate) struct WatchStream {
    answer: Answer,
    frames: Frames,
    /// The object of the last event, where the stream is protobuf.
    object: String,
    /// Whether anything has come.
    has_spoken: bool,
}

/// What one frame of a watch says.
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
        let frames = Frames::new(answer.frames, LONGEST_OBJECT);
        Ok(Self { answer, frames, object: String::new(), has_spoken: false })
    }

    /// Waits until something comes; `false` if the server has closed the stream.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(crate) async fn receive(&mut self, limit: Duration) -> Result<bool, RequestError> {
        let Some(bytes) = self.answer.chunk(limit).await? else { return Ok(false) };
        self.has_spoken = true;
        self.frames.push(&bytes).map_err(|FrameTooLong| {
            self.answer.failed(Reason::Oversized { limit: LONGEST_OBJECT })
        })?;
        Ok(true)
    }

    /// Lets nothing that comes wake anybody until [`receive`](Self::receive) is called.
    pub(crate) fn rest(&self) {
        self.answer.rest();
    }

    /// Whether anything has come since it was opened.
    pub(crate) fn has_spoken(&self) -> bool {
        self.has_spoken
    }

    /// The next event that has been received.
    pub(crate) fn event(&mut self) -> Option<Result<WatchEvent<'_>, serde_json::Error>> {
        self.frames.next().map(|frame| parse(self.answer.frames, frame, &mut self.object))
    }

    pub(crate) fn failed(&self, reason: Reason) -> RequestError {
        self.answer.failed(reason)
    }
}

/// What a frame says. If it is protobuf, its object is put into `json`.
pub(crate) fn parse<'a>(
    frames: FrameKind,
    frame: &'a [u8],
    json: &'a mut String,
) -> Result<WatchEvent<'a>, serde_json::Error> {
    let (kind, object) = match frames {
        FrameKind::Json => match split(frame) {
            Some(parts) => parts,
            None => {
                let Line { kind, object } = serde_json::from_slice(frame)?;
                (kind, object.get())
            }
        },
        FrameKind::Protobuf => {
            let kind;
            (kind, *json) = protobuf::event(frame).map_err(serde_json::Error::custom)?;
            let unknown = || serde_json::Error::custom(format!("{kind:?} is no kind of event"));
            (Kind::of(&kind).ok_or_else(unknown)?, json.as_str())
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
    Some((Kind::of(kind)?, object))
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

impl Kind {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "ADDED" => Self::Added,
            "BOOKMARK" => Self::Bookmark,
            "DELETED" => Self::Deleted,
            "ERROR" => Self::Error,
            "MODIFIED" => Self::Modified,
            _ => return None,
        })
    }
}

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_an_api_server_sends() {
        let (json, unused) = (FrameKind::Json, &mut String::new());
        let line = br#"{"type":"BOOKMARK","object":{"kind":"Node","apiVersion":"v1","metadata":{"resourceVersion":"7","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{}}}}"#;
        let WatchEvent::Bookmark { version, ends_initial } = parse(json, line, unused).unwrap()
        else {
            panic!()
        };
        assert_eq!((version.as_str(), ends_initial), ("7", true));
        let line = br#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (8)","reason":"Expired","code":410}}"#;
        let WatchEvent::Error(status) = parse(json, line, unused).unwrap() else { panic!() };
        assert!(status.is_expired());
        let WatchEvent::Deleted(object) =
            parse(json, br#"{"type":"DELETED","object":{"a":[1, 2]}}"#, unused).unwrap()
        else {
            panic!()
        };
        assert_eq!(object, r#"{"a":[1, 2]}"#);
        let spaced = br#"{ "object": {"a":1}, "type": "ADDED" }"#;
        assert!(matches!(parse(json, spaced, unused).unwrap(), WatchEvent::Upserted(r#"{"a":1}"#)));
        for line in [&b""[..], b"{}", br#"{"type":"OTHER","object":{}}"#, br#"{"type":"ADDED"}"#] {
            assert!(parse(json, line, unused).is_err());
        }
    }
}
