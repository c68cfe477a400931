//! What the API server does with requests.

use std::{io, net::TcpListener, sync::Arc};

use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinSet, time::sleep};

use super::{
    Body, Refusal, Request, Shared, gzip,
    http::{Connection, parameter},
    protobuf,
    streams::watch,
    target::Target,
    write,
};

/// Serves until it is told to stop, which ends all connections.
pub(super) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut stopped: oneshot::Receiver<()>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                stream.set_nodelay(true).ok();
                let shared = Arc::clone(&shared);
                // A connection that breaks is its client's concern.
                connections.spawn(async move { connection(Connection::new(stream), &shared).await.ok() });
            }
        }
    }
}

async fn connection(mut connection: Connection, shared: &Shared) -> io::Result<()> {
    while let Some((request, token)) = connection.request().await? {
        let admitted = admit(shared, &request, token);
        let delay = shared.state().behaviour.delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        match admitted {
            Ok(_) if shared.state().behaviour.unanswered.as_ref() == Some(&request.path) => {
                // Until the client has gone.
                while connection.more().await? {}
            }
            Err(refusal) => {
                let body = status(&refusal).to_string();
                connection.answer(refusal.code, refusal.retry_after, &body).await?;
            }
            Ok(target) => match shared.answers.answer(&request) {
                Some((code, Body::Text(text))) => connection.answer(code, None, &text).await?,
                Some((code, Body::Protobuf(bytes))) => {
                    connection.write_whole(code, None, protobuf::STREAM, &bytes).await?;
                }
                None => answer(&mut connection, shared, &request, &target).await?,
            },
        }
    }
    Ok(())
}

/// Whether the request is served, and what it is about.
fn admit(shared: &Shared, request: &Request, token: Option<String>) -> Result<Target, Refusal> {
    let mut state = shared.state();
    state.requests.push(request.clone());
    let behaviour = &mut state.behaviour;
    if let Some((refusal, left)) = &mut behaviour.refusal {
        let refusal = refusal.clone();
        *left -= 1;
        if *left == 0 {
            behaviour.refusal = None;
        }
        return Err(refusal);
    }
    if behaviour.token.is_some() && behaviour.token != token {
        return Err(Refusal::new(401, "Unauthorized", "Unauthorized"));
    }
    let not_found =
        || Refusal::new(404, "NotFound", "the server could not find the requested resource");
    if let Some(allowed) = &behaviour.allowed
        && !request.right().is_some_and(|it| allowed.iter().any(|right| right.covers(&it)))
    {
        let message = match request.right() {
            Some(right) => format!("{} is forbidden: User \"nobody\" {right}", right.resource),
            None => format!("forbidden: User \"nobody\" cannot get path {:?}", request.path),
        };
        return Err(Refusal::new(403, "Forbidden", &message));
    }
    let target = Target::of(&request.path).ok_or_else(not_found)?;
    let (method, plural) = (&request.method, &target.plural);
    if state.behaviour.forbidden.iter().any(|it| *it == (method.clone(), plural.clone())) {
        let message = format!("{plural} is forbidden: User cannot {method} resource {plural:?}");
        return Err(Refusal::new(403, "Forbidden", &message));
    }
    Ok(target)
}

async fn answer(
    connection: &mut Connection,
    shared: &Shared,
    request: &Request,
    target: &Target,
) -> io::Result<()> {
    let answered = match (&target.key, request.method.as_str()) {
        (None, "GET") if request.is_watch() => {
            return watch(connection, shared, request, target).await;
        }
        (None, "GET") => return list(connection, shared, request, target).await,
        (Some(key), "GET") => write::existing(shared, target, key),
        _ => write::write(shared, request, target),
    };
    match answered {
        Ok((code, object)) => connection.answer(code, None, &object).await,
        Err(refusal) => {
            let body = status(&refusal).to_string();
            connection.answer(refusal.code, None, &body).await
        }
    }
}

async fn list(
    connection: &mut Connection,
    shared: &Shared,
    request: &Request,
    target: &Target,
) -> io::Result<()> {
    let limit = parameter(&request.query, "limit").and_then(|it| it.parse().ok());
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let after = parameter(&request.query, "continue");
    // A token has the version of its first page in it, which may be gone.
    let token = after.as_deref().and_then(|it| it.split_once(':'));
    let of_first: Option<u64> = token.and_then(|(version, _)| version.parse().ok());
    if of_first.is_some_and(|version| shared.state().objects.since(version).is_err()) {
        let refusal = Refusal::new(410, "Expired", "The provided continue parameter is too old");
        return connection.answer(410, None, &status(&refusal).to_string()).await;
    }
    let (items, version, next) = {
        let state = shared.state();
        let version = of_first.unwrap_or_else(|| state.objects.version());
        let (page, more) = state.objects.page(&target.plural, token.map(|(_, key)| key), limit);
        let next = page.last().filter(|_| more).map(|(key, _)| format!("{version}:{key}"));
        let selected = page.into_iter().filter(|(key, _)| selects(request, target, key));
        let selected = selected.filter(|(_, object)| has_labels(request, object));
        (selected.map(|(_, object)| object).collect::<Vec<_>>(), version, next)
    };
    let meta =
        json!({ "resourceVersion": version.to_string(), "continue": next.unwrap_or_default() });
    let kind = kind(&target.plural);
    let version = target.api_version();
    let head =
        format!(r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{meta},"items":["#);
    let pieces = items.into_iter().enumerate().map(|(n, item)| match n {
        0 => item.to_string(),
        _ => format!(",{item}"),
    });
    let pieces = std::iter::once(head).chain(pieces).chain(["]}\n".to_owned()]);
    let is_wanted = request.accept_encoding.split([',', ' ']).any(|it| it == "gzip");
    let is_compressed = is_wanted || shared.state().behaviour.compresses_unasked;
    connection.begin("application/json", is_compressed.then_some("gzip")).await?;
    if is_compressed {
        let whole = gzip::file(pieces.collect::<String>().as_bytes());
        shared.state().bytes_sent += whole.len() as u64;
        connection.chunk(&whole).await?;
    } else {
        for piece in pieces {
            shared.state().bytes_sent += piece.len() as u64;
            connection.chunk(piece.as_bytes()).await?;
        }
    }
    connection.end().await
}

/// What an object of a kind says that it is.
pub(super) fn kind(plural: &str) -> &'static str {
    match plural {
        "configmaps" => "ConfigMap",
        "events" => "Event",
        "namespaces" => "Namespace",
        "networkpolicies" => "NetworkPolicy",
        "pods" => "Pod",
        _ => "Node",
    }
}

/// Whether an object is among those that are asked for.
pub(super) fn selects(request: &Request, target: &Target, key: &str) -> bool {
    let name = match &target.namespace {
        Some(namespace) => {
            let name = key.strip_prefix(namespace.as_str()).and_then(|rest| rest.strip_prefix('/'));
            let Some(name) = name else { return false };
            name
        }
        None => key,
    };
    let selector = parameter(&request.query, "fieldSelector");
    selector
        .is_none_or(|selector| selector.strip_prefix("metadata.name=").is_none_or(|it| it == name))
}

/// Whether an object has the labels that are asked for.
fn has_labels(request: &Request, object: &str) -> bool {
    let Some(selector) = parameter(&request.query, "labelSelector") else { return true };
    let object: Value = serde_json::from_str(object).unwrap_or_default();
    let mut pairs = selector.split(',').filter_map(|pair| pair.split_once('='));
    pairs.all(|(name, value)| object["metadata"]["labels"][name] == value)
}

pub(super) fn status(refusal: &Refusal) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refusal.message, "reason": refusal.reason, "code": refusal.code,
    })
}

impl Refusal {
    /// An answer with this status.
    pub fn new(code: u16, reason: &str, message: &str) -> Self {
        Self { code, reason: reason.into(), message: message.into(), retry_after: None }
    }
}
