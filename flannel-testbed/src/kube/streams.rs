//! The streams of watches.

use std::{io, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::time::{Instant, sleep_until};

use super::{
    Refusal, Request, Shared,
    http::{Connection, parameter},
    objects::{Change, Expired},
    protobuf,
    serve::{kind, selects, status},
    target::Target,
};

pub(super) async fn watch(
    connection: &mut Connection,
    shared: &Shared,
    request: &Request,
    target: &Target,
) -> io::Result<()> {
    let query = |name: &str| parameter(&request.query, name);
    let is_initial = query("sendInitialEvents").is_some_and(|it| it == "true");
    if is_initial && !shared.state().behaviour.watch_list {
        let refusal = Refusal::new(
            422,
            "Invalid",
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
        return connection.answer(422, None, &status(&refusal).to_string()).await;
    }
    let stream = {
        let mut state = shared.state();
        state.open_streams += 1;
        state.next_stream += 1;
        state.next_stream - 1
    };
    let _open = Open(shared);
    let format = Format::of(request, shared);
    connection.begin(format.content_type(), None).await?;
    let mut changed = shared.changed.subscribe();
    let mut version = match query("resourceVersion").and_then(|it| it.parse::<u64>().ok()) {
        Some(version) if version > 0 && !is_initial => version,
        _ => {
            let (objects, version) = {
                let state = shared.state();
                (
                    state
                        .objects
                        .page(&target.plural, None, usize::MAX)
                        .0
                        .into_iter()
                        .map(|(key, object)| (key.to_owned(), object))
                        .collect::<Vec<_>>(),
                    state.objects.version(),
                )
            };
            for (key, object) in objects {
                let change =
                    Change { version, plural: target.plural.clone(), key, kind: "ADDED", object };
                send(connection, shared, request, target, format, &change).await?;
            }
            if is_initial {
                let end = json!({"k8s.io/initial-events-end": "true"});
                bookmark(connection, target, format, version, &end).await?;
            }
            version
        }
    };
    let is_expired = {
        let expired_watches = &mut shared.state().behaviour.expired_watches;
        let is_expired = !is_initial && *expired_watches > 0;
        *expired_watches -= usize::from(is_expired);
        is_expired
    };
    if is_expired {
        return expired(connection, format, version).await;
    }
    if !is_initial && shared.state().behaviour.broken_watches {
        let refusal = Refusal::new(500, "InternalError", "unable to encode watch object");
        connection.chunk(&format.frame("ERROR", &status(&refusal).to_string())?).await?;
        return connection.end().await;
    }
    let until = query("timeoutSeconds").and_then(|it| it.parse().ok()).unwrap_or(1800);
    let until = Instant::now() + Duration::from_secs(until);
    let mut next_bookmark = Instant::now() + shared.state().behaviour.bookmark_every;
    loop {
        changed.borrow_and_update();
        let (news, is_cut, is_silent) = {
            let state = shared.state();
            let is_cut = stream < state.cut_before;
            // Who goes on from what has not happened yet gets nothing, not even bookmarks.
            let is_silent = stream < state.silent_before || version > state.objects.version();
            (state.objects.since(version), is_cut, is_silent)
        };
        if is_cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if !is_silent {
            match news {
                Err(Expired) => return expired(connection, format, version).await,
                Ok(news) => {
                    for change in news {
                        version = change.version;
                        send(connection, shared, request, target, format, &change).await?;
                    }
                }
            }
            if next_bookmark <= Instant::now() {
                let now = shared.state().objects.version();
                version = version.max(now);
                bookmark(connection, target, format, version, &json!({})).await?;
                next_bookmark = Instant::now() + shared.state().behaviour.bookmark_every;
            }
        }
        let at = if is_silent { until } else { next_bookmark.min(until) };
        tokio::select! {
            _ = changed.changed() => {}
            () = sleep_until(at) => if until <= Instant::now() {
                return connection.end().await;
            },
            // The client has gone.
            more = connection.more() => if !more? { return Ok(()) },
        }
    }
}

async fn send(
    connection: &mut Connection,
    shared: &Shared,
    request: &Request,
    target: &Target,
    format: Format,
    change: &Change,
) -> io::Result<()> {
    if change.plural != target.plural || !selects(request, target, &change.key) {
        return Ok(());
    }
    let Change { kind, object, .. } = change;
    let frame = if request.accept.contains("as=PartialObjectMetadata") {
        let view: View<'_> = serde_json::from_str(object)?;
        let object = format!(
            "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{}}}",
            view.metadata
        );
        format.frame(kind, &object)?
    } else {
        format.frame(kind, object)?
    };
    shared.state().bytes_sent += frame.len() as u64;
    connection.chunk(&frame).await
}

/// What a stream is written in.
#[derive(Clone, Copy)]
enum Format {
    Json,
    Protobuf,
}

impl Format {
    fn of(request: &Request, shared: &Shared) -> Self {
        let is_wanted = request.accept.starts_with(protobuf::CONTENT_TYPE);
        match is_wanted && shared.state().behaviour.protobuf {
            true => Self::Protobuf,
            false => Self::Json,
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => protobuf::STREAM,
        }
    }

    fn frame(self, kind: &str, object: &str) -> io::Result<Vec<u8>> {
        match self {
            Self::Json => Ok(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into_bytes()),
            Self::Protobuf => Ok(protobuf::frame(kind, object)?),
        }
    }
}

#[derive(Deserialize)]
struct View<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

async fn bookmark(
    connection: &mut Connection,
    target: &Target,
    format: Format,
    version: u64,
    annotations: &Value,
) -> io::Result<()> {
    let kind = kind(&target.plural);
    let meta = json!({
        "resourceVersion": version.to_string(), "creationTimestamp": null, "annotations": annotations,
    });
    let object = json!({ "kind": kind, "apiVersion": target.api_version(), "metadata": meta });
    connection.chunk(&format.frame("BOOKMARK", &object.to_string())?).await
}

async fn expired(connection: &mut Connection, format: Format, version: u64) -> io::Result<()> {
    let message = format!("too old resource version: {version}");
    let refusal = status(&Refusal::new(410, "Expired", &message)).to_string();
    connection.chunk(&format.frame("ERROR", &refusal)?).await?;
    connection.end().await
}

/// Counts a watch for as long as it is open.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.state().open_streams -= 1;
    }
}
