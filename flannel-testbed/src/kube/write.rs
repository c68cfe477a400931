//! Requests about single objects.

use std::sync::Arc;

use serde_json::Value;

use super::{Refusal, Request, Shared, target::Target};

/// An HTTP status and an object, or what is answered instead.
type Answered = Result<(u16, Arc<str>), Refusal>;

/// The object with this key.
pub(super) fn existing(shared: &Shared, target: &Target, key: &str) -> Answered {
    let found = shared.state().objects.get(&target.plural, key);
    found.map(|object| (200, object)).ok_or_else(|| not_found(target, key))
}

/// Creates, patches or deletes an object.
pub(super) fn write(shared: &Shared, request: &Request, target: &Target) -> Answered {
    let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let written = match (request.method.as_str(), &target.key) {
        ("POST", None) => create(shared, target, body),
        ("PATCH", Some(key)) => {
            let part = target.part.as_deref();
            let patched = shared.state().objects.patch(&target.plural, key, &body, part);
            patched.map(|object| (200, object)).ok_or_else(|| not_found(target, key))
        }
        ("DELETE", Some(key)) => existing(shared, target, key).inspect(|_| {
            shared.state().objects.delete(&target.plural, key);
        }),
        _ => Err(Refusal::new(405, "MethodNotAllowed", "the server does not allow this method")),
    };
    shared.changed.send_modify(|count| *count += 1);
    written
}

fn create(shared: &Shared, target: &Target, object: Value) -> Answered {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = match &target.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.clone(),
    };
    if name.is_empty() {
        return Err(Refusal::new(422, "Invalid", "metadata.name: Required value"));
    }
    if existing(shared, target, &key).is_ok() {
        let message = format!("{} {name:?} already exists", target.plural);
        return Err(Refusal::new(409, "AlreadyExists", &message));
    }
    shared.state().objects.put(&target.plural, &key, object);
    existing(shared, target, &key).map(|(_, object)| (201, object))
}

fn not_found(target: &Target, key: &str) -> Refusal {
    Refusal::new(404, "NotFound", &format!("{} {key:?} not found", target.plural))
}
