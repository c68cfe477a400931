use serde::{Deserialize, Deserializer, de::DeserializeOwned};
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
        let name = text("name")?.to_owned();
        let version = Version::parse(text("cniVersion")?)?;
        let kind = text("type")?.to_owned();
        let config = Self { version, name, kind, object };
        config.validate()?;
        Ok(config)
    }

    /// Whether the network has a name that can be right: it becomes that of a folder.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.name.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "missing network name"));
        }
        if !is_plain_name(&self.name) {
            let message = "invalid characters found in network name";
            return Err(Error::new(Code::InvalidConfig, message).with_details(&*self.name));
        }
        Ok(())
    }

    /// What the plugin before this one in the chain answered to `ADD`, or the whole chain for `CHECK` and `DEL`.
    ///
    /// # Errors
    ///
    /// [`Code::Decoding`] if it is no result, [`Code::IncompatibleVersion`].
    pub fn previous(&self) -> Result<Option<AddResult>, Error> {
        match self.object.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => AddResult::from_json(value, self.version).map(Some),
        }
    }

    /// All attachments that the runtime knows, for `GC`. Without the list nothing is known about any of them.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidConfig`] if there is no list, or if it cannot be read.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        // The second is what the specification once called it.
        let names = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some(list) = names.into_iter().find_map(|name| self.object.get(name)) else {
            let message = format!("GC without {:?}", names[0]);
            return Err(Error::new(Code::InvalidConfig, message)
                .with_details("which attachments are valid is not known, so nothing is removed"));
        };
        let list: Option<Vec<Attachment>> = take(list)?;
        Ok(list.unwrap_or_default())
    }

    /// The value at this path, if there is one that can be read: for removals, which must not fail for what `ADD` refuses.
    pub(crate) fn readable<T: DeserializeOwned>(&self, path: &[&str]) -> Option<T> {
        let (first, rest) = path.split_first()?;
        let value = rest.iter().try_fold(self.object.get(*first)?, |value, key| value.get(key))?;
        T::deserialize(value).ok()
    }

    /// The keys that a plugin knows, as a structure of its own; others are left out.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidConfig`] if a key has a value of the wrong kind.
    pub fn keys<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if !self.object.contains_key("runtimeConfig") {
            return take(&self.object);
        }
        let mut object = self.object.clone();
        object.get_mut("runtimeConfig").map(spell_keys);
        take(&object)
    }
}

fn take<'de, T: DeserializeOwned>(
    from: impl Deserializer<'de, Error = serde_json::Error>,
) -> Result<T, Error> {
    T::deserialize(from).map_err(|error| {
        Error::new(Code::InvalidConfig, format!("cannot use the network configuration: {error}"))
    })
}

/// Gives keys that a runtime writes as Go names fields, such as containerd's `HostPort`, the spelling of the conventions: `hostPort`.
fn spell_keys(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(spell_keys),
        Value::Object(object) => {
            let capital = |key: &String| key.starts_with(|first: char| first.is_ascii_uppercase());
            for key in object.keys().filter(|key| capital(key)).cloned().collect::<Vec<_>>() {
                if let Some(value) = object.remove(&key) {
                    object.entry(key[..1].to_ascii_lowercase() + &key[1..]).or_insert(value);
                }
            }
            object.values_mut().for_each(spell_keys);
        }
        _ => {}
    }
}

/// Takes `null` for a missing value, as Go's decoder does.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
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
        ] {
            assert_eq!(Config::parse(text.as_bytes()).unwrap_err().code, code, "{text}");
        }
        let config = Config::parse(br#"{"name": "cbr0", "type": "bridge", "prevResult": null}"#);
        let config = config.unwrap();
        assert_eq!((config.version, &*config.kind), (Version::V0_1_0, "bridge"));
    }

    #[test]
    fn attachments_are_read_under_both_names_and_one_of_them_is_there() {
        let read = |key: &str, value: &str| {
            Config::parse(format!(r#"{{"name": "a", "{key}": {value}}}"#).as_bytes())
                .unwrap()
                .valid_attachments()
        };
        let list = r#"[{"containerID": "c1", "ifname": "eth0"}]"#;
        let expected = Attachment { container_id: "c1".into(), interface: "eth0".into() };
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            assert_eq!(read(key, list).unwrap(), std::slice::from_ref(&expected));
            assert_eq!(read(key, "null").unwrap(), []);
            assert_eq!(read(key, "1").unwrap_err().code, Code::InvalidConfig);
        }
        assert_eq!(read("other", list).unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn a_previous_result_is_read_when_it_is_needed() {
        let config = Config::parse(br#"{"name": "x", "prevResult": 1}"#).unwrap();
        assert_eq!(config.previous().unwrap_err().code, Code::Decoding);
        let config = Config::parse(br#"{"name": "x", "prevResult": null}"#).unwrap();
        assert_eq!(config.previous(), Ok(None));
    }

    // As containerd 2.2 gives them: github.com/containerd/go-cni has no names for JSON in these structures.
    #[test]
    fn what_the_runtime_says_may_be_spelled_as_in_go() {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Keys {
            runtime_config: Value,
        }
        let text = br#"{"name": "a", "Other": 1, "runtimeConfig": {
            "portMappings": [{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "::1"}],
            "ipRanges": [[{"Subnet": "10.0.0.0/24", "subnet": "10.0.1.0/24"}]], "mac": "x", "": {"1": 1}}}"#;
        let config = Config::parse(text).unwrap();
        let keys: Keys = config.keys().unwrap();
        let expected = serde_json::json!({
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "::1"}],
            "ipRanges": [[{"subnet": "10.0.1.0/24"}]], "mac": "x", "": {"1": 1},
        });
        assert_eq!(keys.runtime_config, expected);
        assert!(config.object.contains_key("Other"), "others are told what the runtime said");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in any::<Vec<u8>>()) {
            let _ = Config::parse(&text);
        }
    }
}
