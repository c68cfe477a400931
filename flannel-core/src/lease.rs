//! Leases, and flannel's JSON for what a node tells its peers.

mod second_backend;

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
use serde_json::value::RawValue;

pub use second_backend::{SecondBackend, SecondRole};

use crate::{
    fields::{FieldError, Fields, shorten},
    identity::NodeId,
    subnet::Subnet,
};

/// A node's hold on a subnet, as its peers see it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Lease {
    /// The addresses that are the node's.
    pub subnet: Subnet,
    /// How to reach the node.
    pub attrs: LeaseAttrs,
    /// Who holds it, where the store knows. Flannel's own leases do not say.
    pub node: Option<NodeId>,
}

impl Lease {
    /// A lease whose holder is known by its address only.
    pub fn new(subnet: Subnet, attrs: LeaseAttrs) -> Self {
        Self { subnet, attrs, node: None }
    }

    /// The same lease, held by `node`.
    pub fn held_by(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }
}

/// What a node publishes about itself with its lease.
///
/// [`fmt::Display`] prints and [`str::parse`] reads flannel's JSON: compact, members in this order, `PublicIP` always there,
/// `PublicIPv6` `null` when unset, the others left out when empty; behind them [`SecondBackend`], where there is one. With serde it has
/// the same form, in JSON only.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LeaseAttrs {
    /// The IPv4 address at which peers reach the node; flannel writes `0.0.0.0` for none.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address at which peers reach the node.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend's name; empty for those that publish none, such as flannel's `udp`.
    pub backend_type: Cow<'static, str>,
    /// What the backend tells its peers about IPv4.
    pub backend_data: Option<RawJson>,
    /// What the backend tells its peers about IPv6.
    pub backend_v6_data: Option<RawJson>,
    /// Another backend by which the node is reached as well, while the network moves from one to the other.
    pub second: Option<Box<SecondBackend>>,
}

/// A text that is not a lease's JSON.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// A member is malformed.
    #[error("lease: {0}")]
    Field(#[from] FieldError),
    /// The value is longer than any lease.
    #[error("lease: {len} bytes, expected at most {MAX_LEASE_BYTES}")]
    Oversized {
        /// The value's length in bytes.
        len: usize,
    },
}

/// The longest lease value that is read, in bytes. Those of flannel's backends have less than 300; the rest is room for the
/// extension backend, whose commands choose what they publish.
pub const MAX_LEASE_BYTES: usize = 64 * 1024;

impl LeaseAttrs {
    /// The first public address, IPv4 before IPv6.
    pub fn address(&self) -> Option<IpAddr> {
        self.public_ip.map(IpAddr::V4).or_else(|| self.public_ipv6.map(IpAddr::V6))
    }
}

impl fmt::Display for LeaseAttrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&with_escapes(json.chars()))
    }
}

/// JSON with the five characters escaped that Go's encoder escapes. They occur inside of strings only.
fn with_escapes(json: impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    for c in json {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text += &format!("\\u{:04x}", c as u32),
            c => text.push(c),
        }
    }
    text
}

impl FromStr for LeaseAttrs {
    type Err = LeaseError;

    fn from_str(text: &str) -> Result<Self, LeaseError> {
        if text.len() > MAX_LEASE_BYTES {
            return Err(LeaseError::Oversized { len: text.len() });
        }
        let fields = Fields::parse(text)?;
        let raw = |key: &str| fields.raw(key).map(RawJson::of_valid);
        Ok(Self {
            public_ip: fields
                .parsed("PublicIP", "an IPv4 address", |text| text.parse().ok())?
                .filter(|ip| *ip != Ipv4Addr::UNSPECIFIED),
            public_ipv6: fields
                .parsed("PublicIPv6", "an IPv6 address", |text| text.parse().ok())?
                .filter(|ip| *ip != Ipv6Addr::UNSPECIFIED),
            backend_type: fields.text("BackendType")?.map_or(Cow::Borrowed(""), backend_type),
            backend_data: raw("BackendData"),
            backend_v6_data: raw("BackendV6Data"),
            second: fields.raw(SECOND_BACKEND).and_then(|text| text.parse().ok()).map(Box::new),
        })
    }
}

/// Ten thousand leases have the same few types.
pub(crate) fn backend_type(backend_type: String) -> Cow<'static, str> {
    let known = BACKEND_TYPES.into_iter().find(|known| *known == backend_type);
    known.map_or(Cow::Owned(backend_type), Cow::Borrowed)
}

/// The member that is no member of flannel's.
const SECOND_BACKEND: &str = "SecondBackend";

/// What flannel's backends write, at cdf76059.
const BACKEND_TYPES: [&str; 6] = ["extension", "host-gw", "ipip", "ipsec", "vxlan", "wireguard"];

impl<'de> Deserialize<'de> for LeaseAttrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        json.get().parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::of_valid(Box::<RawValue>::deserialize(deserializer)?.get()))
    }
}

impl Serialize for LeaseAttrs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Mirrors LeaseAttrs in pkg/lease/lease.go at cdf76059.
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("PublicIP", &self.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED))?;
        map.serialize_entry("PublicIPv6", &self.public_ipv6)?;
        if !self.backend_type.is_empty() {
            map.serialize_entry("BackendType", &self.backend_type)?;
        }
        if let Some(data) = &self.backend_data {
            map.serialize_entry("BackendData", data)?;
        }
        if let Some(data) = &self.backend_v6_data {
            map.serialize_entry("BackendV6Data", data)?;
        }
        if let Some(second) = &self.second {
            map.serialize_entry(SECOND_BACKEND, second)?;
        }
        map.end()
    }
}

/// One JSON value, which only its backend understands, as Go's encoder writes it: compact, and with `<`, `>`, `&` escaped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RawJson(Box<str>);

/// A text that is not one JSON value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text} is not JSON")]
pub struct InvalidJson {
    text: String,
}

impl RawJson {
    /// Takes one JSON value, without its white space and with Go's escapes.
    ///
    /// # Errors
    ///
    /// [`InvalidJson`] if `text` is not exactly one value.
    pub fn new(text: &str) -> Result<Self, InvalidJson> {
        let raw: &RawValue =
            serde_json::from_str(text.trim()).map_err(|_| InvalidJson { text: shorten(text) })?;
        Ok(Self::of_valid(raw.get()))
    }

    /// The same of a text that is known to be one JSON value.
    fn of_valid(json: &str) -> Self {
        // What nodes write is as it should be. U+2028 and U+2029 begin with the last of these bytes.
        let is_odd =
            |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'<' | b'>' | b'&' | 0xe2);
        if !json.bytes().any(is_odd) {
            return Self(json.into());
        }
        let (mut in_string, mut escaped) = (false, false);
        let significant = |c: &char| {
            let keep = in_string || !c.is_ascii_whitespace();
            in_string ^= *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            keep
        };
        Self(with_escapes(json.chars().filter(significant)).into())
    }

    /// The value's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// A change in the set of leases. A store that keeps leases shares them with whoever hears of them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseEvent {
    /// The subnet is nobody's any more. Of one that was not known to be somebody's this says nothing new.
    Remove(Subnet),
    /// These are all leases there are; whatever was known before is void.
    Reset(Vec<Arc<Lease>>),
    /// A lease is new, or its attributes or holder changed.
    Upsert(Arc<Lease>),
}

impl LeaseEvent {
    /// A [`LeaseEvent::Reset`] of these.
    pub fn reset(leases: impl IntoIterator<Item = impl Into<Arc<Lease>>>) -> Self {
        Self::Reset(leases.into_iter().map(Into::into).collect())
    }

    /// A [`LeaseEvent::Upsert`] of this.
    pub fn upsert(lease: impl Into<Arc<Lease>>) -> Self {
        Self::Upsert(lease.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn leases_print_byte_for_byte_as_flannels() {
        // TestEtcdRegistry in pkg/subnet/etcd/registry_test.go at cdf76059 asserts the first; the second is what a vxlan node writes.
        for text in [
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::7","BackendType":"host-gw"}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension","BackendData":"a \u003c b\u0026\u2028 \\\" "}"#,
        ] {
            assert_eq!(text.parse::<LeaseAttrs>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_other_nodes_write_is_read_in_any_spelling() {
        let text = r#" {"publicip": "1.2.3.4", "BACKENDTYPE": "vxlan", "extra": [1],
                        "backendData": { "VNI" : 1, "VtepMAC" : "a b" } , "BackendV6Data": null} "#;
        let attrs: LeaseAttrs = text.parse().unwrap();
        assert_eq!(attrs.public_ip, Some(Ipv4Addr::new(1, 2, 3, 4)));
        let data = attrs.backend_data.unwrap();
        assert_eq!([data.as_str(), &data.to_string()], [r#"{"VNI":1,"VtepMAC":"a b"}"#; 2]);
        assert_eq!(attrs.backend_v6_data, None);
        assert_eq!("{}".parse::<LeaseAttrs>().unwrap(), LeaseAttrs::default());
    }

    #[test]
    fn garbage_is_an_error_that_names_the_member() {
        let error = r#"{"PublicIP":"::1"}"#.parse::<LeaseAttrs>().unwrap_err();
        assert_eq!(error.to_string(), r#"lease: PublicIP is "::1", expected an IPv4 address"#);
        let long = format!(r#"{{"PublicIP":"1.2.3.4","x":"{}"}}"#, "x".repeat(MAX_LEASE_BYTES));
        assert!(matches!(long.parse::<LeaseAttrs>(), Err(LeaseError::Oversized { .. })));
        let longest = long.replacen(&"x".repeat(long.len() - MAX_LEASE_BYTES + 1), "x", 1);
        assert_eq!((longest.len(), longest.parse::<LeaseAttrs>().is_ok()), (MAX_LEASE_BYTES, true));
    }

    prop_compose! {
        fn attrs()(
            v4 in proptest::option::of(prop_oneof![Just(0), any::<u32>()]),
            v6 in proptest::option::of(prop_oneof![Just(0), any::<u128>()]),
            backend_type in "[ -~é<>&\u{2028}]{0,20}",
            data in proptest::option::of("\\PC{0,30}"),
            role in proptest::option::of(prop::sample::select(&[SecondRole::Next, SecondRole::InUse, SecondRole::Unused])),
            second_type in "[ -~é<>&\u{2028}]{0,20}",
        ) -> LeaseAttrs {
            let data = data.map(|text| RawJson::new(&serde_json::to_string(&text).unwrap()).unwrap());
            LeaseAttrs {
                public_ip: v4.map(Ipv4Addr::from),
                public_ipv6: v6.map(Ipv6Addr::from),
                backend_type: backend_type.into(),
                backend_data: data.clone(),
                backend_v6_data: data.clone(),
                second: role.map(|role| {
                    let (backend_data, backend_v6_data) = (data.clone(), data);
                    Box::new(SecondBackend { backend_type: second_type.into(), backend_data, backend_v6_data, role })
                }),
            }
        }
    }

    proptest! {
        #[test]
        fn every_lease_survives_its_json(attrs in attrs()) {
            let read: LeaseAttrs = attrs.to_string().parse().unwrap();
            // The unspecified address means that there is none.
            let expected = LeaseAttrs {
                public_ip: attrs.public_ip.filter(|ip| !ip.is_unspecified()),
                public_ipv6: attrs.public_ipv6.filter(|ip| !ip.is_unspecified()),
                ..attrs.clone()
            };
            prop_assert_eq!(&read, &expected);
            prop_assert_eq!(read.to_string(), expected.to_string());
            prop_assert_eq!(serde_json::from_str::<LeaseAttrs>(&attrs.to_string()).unwrap(), read);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}", value in "\\PC{0,20}") {
            let _ = text.parse::<LeaseAttrs>();
            let _ = format!(r#"{{"PublicIP":{value},"BackendData":{value}}}"#).parse::<LeaseAttrs>();
            let _ = RawJson::new(&value);
        }
    }
}
