use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{AddResult, Attachment, Code, Error, Version, environment::is_plain_name};

/// The configuration of one plugin, as the runtime gives it: one JSON object.
///
/// What all plugins know is read and checked; each plugin takes its own keys with [`keys`](Self::keys).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The version that the answer has to have.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// Which plugin it is for.
    pub kind: String,
    /// What the plugin before this one in the chain answered to `ADD`, or the whole chain for `CHECK` and `DEL`.
    pub previous: Option<AddResult>,
    /// All attachments that the runtime knows, for `GC`.
    pub valid_attachments: Vec<Attachment>,
    /// Everything that was in it.
    pub object: Map<String, Value>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// [`Code::Decoding`] if it is not JSON, [`Code::InvalidConfig`] if what all plugins need is missing or wrong, and
    /// [`Code::IncompatibleVersion`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| {
            Error::new(Code::Decoding, format!("cannot read the network configuration: {error}"))
        })?;
        Self::from_object(object)
    }

    /// Reads a configuration that is JSON already.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn from_object(object: Map<String, Value>) -> Result<Self, Error> {
        let text = |key| match object.get(key) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(&**text),
            Some(other) => {
                let message =
                    format!("{key:?} in the network configuration is {other}, not a text");
                Err(Error::new(Code::Decoding, message))
            }
        };
        let name = text("name")?;
        if name.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "missing network name"));
        }
        if !is_plain_name(name) {
            return Err(Error::new(
                Code::InvalidConfig,
                "invalid characters found in network name",
            )
            .with_details(name));
        }
        let version = Version::parse(text("cniVersion")?)?;
        let kind = text("type")?.to_owned();
        let previous = match object.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(value) => Some(AddResult::from_json(value, version)?),
        };
        let keys: Common = take(&object)?;
        let valid_attachments = keys.valid_attachments.unwrap_or_default();
        Ok(Self { version, name: name.to_owned(), kind, previous, valid_attachments, object })
    }

    /// The keys that a plugin knows, as a structure of its own; others are left out.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidConfig`] if a key has a value of the wrong kind.
    pub fn keys<T: DeserializeOwned>(&self) -> Result<T, Error> {
        take(&self.object)
    }
}

fn take<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, Error> {
    T::deserialize(Value::Object(object.clone())).map_err(|error| {
        Error::new(Code::InvalidConfig, format!("cannot use the network configuration: {error}"))
    })
}

/// Takes `null` for a missing value, as Go's decoder does.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Common {
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid_attachments: Option<Vec<Attachment>>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_all_plugins_need_is_checked() {
        for (text, code) in [
            ("", Code::Decoding),
            ("[]", Code::Decoding),
            (r#"{"name": 7}"#, Code::Decoding),
            ("{}", Code::InvalidConfig),
            (r#"{"name": "../x"}"#, Code::InvalidConfig),
            (r#"{"name": "x", "cniVersion": "9.9.9"}"#, Code::IncompatibleVersion),
            (r#"{"name": "x", "cni.dev/valid-attachments": 1}"#, Code::InvalidConfig),
            (r#"{"name": "x", "prevResult": 1}"#, Code::Decoding),
        ] {
            assert_eq!(Config::parse(text.as_bytes()).unwrap_err().code, code, "{text}");
        }
        let config = Config::parse(br#"{"name": "cbr0", "type": "bridge", "prevResult": null}"#);
        let config = config.unwrap();
        assert_eq!((config.version, &*config.kind), (Version::V0_1_0, "bridge"));
    }

    #[test]
    fn attachments_are_read() {
        let text = br#"{"name": "a", "cniVersion": "1.1.0",
            "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}"#;
        let config = Config::parse(text).unwrap();
        let expected = Attachment { container_id: "c1".into(), interface: "eth0".into() };
        assert_eq!(config.valid_attachments, [expected]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in any::<Vec<u8>>()) {
            let _ = Config::parse(&text);
        }
    }
}
