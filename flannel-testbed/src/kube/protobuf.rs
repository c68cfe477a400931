//! Events in protobuf, as API servers write them: the members that networks read, and something in place of the others.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// What is asked for.
pub(super) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What a watch of that is.
pub(super) const STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// A frame of a watch: `WatchEvent` behind its length, with the object in an envelope.
pub(super) fn frame(kind: &str, object: &str) -> serde_json::Result<Vec<u8>> {
    let object: Object<'_> = serde_json::from_str(object)?;
    let type_meta =
        [field(1, object.api_version.as_bytes()), field(2, object.kind.as_bytes())].concat();
    let envelope = [field(1, &type_meta), field(2, &raw(&object)), field(3, b""), field(4, b"")];
    let envelope = [b"k8s\0".to_vec(), envelope.concat()].concat();
    let event = [field(1, kind.as_bytes()), field(2, &field(1, &envelope))].concat();
    let length = u32::try_from(event.len()).expect("it is small").to_be_bytes();
    Ok([length.to_vec(), event].concat())
}

fn raw(object: &Object<'_>) -> Vec<u8> {
    if object.kind == "Status" {
        let words = [field(3, object.message.as_bytes()), field(4, object.reason.as_bytes())];
        return [words.concat(), number(6, object.code)].concat();
    }
    let meta = &object.metadata;
    let mut bytes = field(1, meta.name.as_bytes());
    bytes.extend(field(5, meta.uid.as_bytes()));
    bytes.extend(field(6, meta.resource_version.as_bytes()));
    for (key, value) in &meta.annotations {
        bytes.extend(field(12, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat()));
    }
    bytes.extend(field(17, meta.managed_fields.map_or("", RawValue::get).as_bytes()));
    let mut bytes = field(1, &bytes);
    if object.kind == "Node" {
        let all = object.spec.pod_cidrs.iter().flat_map(|it| field(7, it.as_bytes()));
        let spec = field(1, object.spec.pod_cidr.as_bytes()).into_iter().chain(all);
        bytes.extend(field(2, &spec.collect::<Vec<_>>()));
        bytes.extend(field(3, object.status.map_or("", RawValue::get).as_bytes()));
    }
    bytes
}

/// A member with a length.
fn field(tag: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(tag << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn number(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    #[serde(borrow)]
    api_version: &'a str,
    #[serde(borrow)]
    kind: &'a str,
    #[serde(default)]
    metadata: Metadata<'a>,
    #[serde(default)]
    spec: Spec,
    /// A Node's, or the word of a Status.
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    code: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata<'a> {
    name: String,
    uid: String,
    resource_version: String,
    annotations: BTreeMap<String, String>,
    #[serde(borrow)]
    managed_fields: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}
