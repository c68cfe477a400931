//! Which backend a network uses, with options that only the backend understands.

use std::{borrow::Cow, fmt};

use serde::Serialize;

use crate::fields::{FieldError, Fields, invalid};

/// The `Backend` member: a type, and options that only the backend understands. Neither `Display` nor `Debug` shows secrets.
#[derive(Clone, Eq, PartialEq)]
pub struct BackendConfig {
    kind: String,
    /// The whole object as it was written; `None` if the configuration has none.
    json: Option<String>,
}

impl BackendConfig {
    /// The backend `kind` with its options: anything that serializes as an object, such as a `serde_json::Value`.
    ///
    /// # Errors
    ///
    /// [`FieldError`] if it does not.
    pub fn new(kind: &str, options: &impl Serialize) -> Result<Self, FieldError> {
        let mut json = serde_json::to_value(options)
            .map_err(|error| FieldError::Syntax { reason: error.to_string() })?;
        let Some(members) = json.as_object_mut() else {
            return Err(invalid("Backend", &json.to_string(), "an object"));
        };
        members.insert("Type".into(), kind.into());
        Self::read(Some(&json.to_string()))
    }

    /// The backend's type in lower case: `udp` if the configuration has no `Backend`, empty if it has one without a `Type`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What a lease calls the backend: flannel's `udp` has no name there.
    pub fn lease_type(&self) -> Cow<'static, str> {
        match self.kind() {
            "udp" => Cow::Borrowed(""),
            kind => crate::lease::backend_type(kind.to_owned()),
        }
    }

    /// Whether the configuration names its backend; if not, `udp` is flannel's default.
    pub fn is_explicit(&self) -> bool {
        self.json.is_some()
    }

    /// The whole object as it was written.
    pub(super) fn json(&self) -> Option<&str> {
        self.json.as_deref()
    }

    /// The members of the object, for the backend to read its options from.
    pub fn options(&self) -> Fields {
        let json = self.json.as_deref().unwrap_or("{}");
        Fields::parse(json).expect("checked when the configuration was parsed")
    }

    /// The same with a sign in the place of each secret, for people to read.
    pub(super) fn without_secrets(&self) -> Self {
        let shown =
            |_: &String| {
                self.options().print(|name, value| {
                    if is_secret(name) && value != "null" { HIDDEN } else { value }
                })
            };
        Self { kind: self.kind.clone(), json: self.json.as_ref().map(shown) }
    }

    /// The backend of a configuration whose member is `json`, if it has one.
    pub(super) fn read(json: Option<&str>) -> Result<Self, FieldError> {
        match json {
            None => Ok(Self::default()),
            // `null` is an object without a type in flannel's eyes, and a backend without a type is unknown to everybody.
            Some("null") => Ok(Self { kind: String::new(), json: Some("{}".into()) }),
            Some(json) => {
                let options = Fields::parse(json)
                    .map_err(|_| invalid("Backend", json, "an object with a Type"))?;
                let kind = options.text("Type")?.unwrap_or_default().to_lowercase();
                Ok(Self { kind, json: Some(json.into()) })
            }
        }
    }
}

impl fmt::Display for BackendConfig {
    /// The object as it is written in the configuration, but for secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.without_secrets().json {
            Some(json) => f.write_str(json),
            None => write!(f, r#"{{"Type":"{}"}}"#, self.kind),
        }
    }
}

impl fmt::Debug for BackendConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendConfig({self})")
    }
}

impl Default for BackendConfig {
    /// What flannel takes where nothing is written: `udp`.
    fn default() -> Self {
        Self { kind: "udp".into(), json: None }
    }
}

fn is_secret(option: &str) -> bool {
    SECRETS.iter().any(|secret| secret.eq_ignore_ascii_case(option))
}

/// Options of flannel's backends that only nodes may know: a preshared key of WireGuard.
const SECRETS: [&str; 1] = ["PSK"];
const HIDDEN: &str = r#""…""#;
