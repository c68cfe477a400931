//! JSON objects read the way Go reads them: keys in any case, the last of equal keys wins, unknown keys ignored.

use std::{fmt, ops::RangeInclusive};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of one JSON object, each value kept as its text until it is asked for.
///
/// Network configuration, backend options and lease data written by flannel all follow Go's `encoding/json`. A lookup ignores
/// ASCII case, a later member replaces an earlier one of the same name, and `null` reads as absent.
#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<(String, Box<RawValue>)>);

/// Why a member of a JSON object, or the object itself, cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// A member holds something else than what is valid there.
    #[error("{key} is {value}, expected {expected}")]
    Invalid {
        /// The member's name in flannel's spelling.
        key: String,
        /// What the member holds, shortened.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// The text is not one JSON object.
    #[error("not a JSON object: {reason}")]
    Syntax {
        /// The parser's words, with line and column.
        reason: String,
    },
}

impl Fields {
    /// Parses `text` as one JSON object.
    ///
    /// # Errors
    ///
    /// [`FieldError::Syntax`] if `text` is anything else, also if something follows the object.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        serde_json::from_str(text)
            .map_err(|error| FieldError::Syntax { reason: shorten(&error.to_string()) })
    }

    /// The members' names as written, to tell people about those that nobody knows.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// One object again, with what `show` makes of each member's name and JSON text.
    pub(crate) fn print<'a>(&'a self, show: impl Fn(&'a str, &'a str) -> &'a str) -> String {
        let member = |(name, value): &'a (String, Box<RawValue>)| {
            format!("{}:{}", serde_json::Value::from(name.as_str()), show(name, value.get()))
        };
        format!("{{{}}}", self.0.iter().map(member).collect::<Vec<_>>().join(","))
    }

    /// The member's JSON text; `None` if it is absent or `null`.
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.present(key).filter(|text| *text != "null")
    }

    /// The member's JSON text, `null` included; `None` if it is absent.
    pub(crate) fn present(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
        Some(value.get())
    }

    /// The member as a boolean, `default` if it is absent.
    ///
    /// # Errors
    ///
    /// [`FieldError::Invalid`] if it holds anything but `true` or `false`.
    pub fn boolean(&self, key: &str, default: bool) -> Result<bool, FieldError> {
        match self.raw(key) {
            None => Ok(default),
            Some(text) => {
                serde_json::from_str(text).map_err(|_| invalid(key, text, "true or false"))
            }
        }
    }

    /// The member as a whole number inside `valid`; `None` if it is absent.
    ///
    /// # Errors
    ///
    /// [`FieldError::Invalid`] if it is not a whole number or is outside of `valid`.
    pub fn integer(
        &self,
        key: &str,
        valid: RangeInclusive<u64>,
    ) -> Result<Option<u64>, FieldError> {
        let Some(text) = self.raw(key) else {
            return Ok(None);
        };
        let number = serde_json::from_str::<u64>(text).ok().filter(|n| valid.contains(n));
        number.map(Some).ok_or_else(|| {
            let expected = format!("a whole number from {} to {}", valid.start(), valid.end());
            invalid(key, text, expected)
        })
    }

    /// The member as a string; `None` if it is absent.
    ///
    /// # Errors
    ///
    /// [`FieldError::Invalid`] if it holds anything else.
    pub fn text(&self, key: &str) -> Result<Option<String>, FieldError> {
        let Some(text) = self.raw(key) else {
            return Ok(None);
        };
        serde_json::from_str(text).map(Some).map_err(|_| invalid(key, text, "a string"))
    }

    /// The member as whatever `parse` makes of its string; `None` if it is absent.
    ///
    /// # Errors
    ///
    /// [`FieldError::Invalid`], saying `expected`, if it is not a string or `parse` returns `None`.
    pub fn parsed<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let Some(text) = self.raw(key) else {
            return Ok(None);
        };
        let value = serde_json::from_str::<String>(text).ok().and_then(|string| parse(&string));
        value.map(Some).ok_or_else(|| invalid(key, text, expected))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

pub(crate) fn invalid(key: &str, value: &str, expected: impl Into<String>) -> FieldError {
    FieldError::Invalid { key: key.into(), value: recognizable(value), expected: expected.into() }
}

/// A JSON value as an error repeats it: objects in the wrong place may have secrets.
fn recognizable(value: &str) -> String {
    match value.as_bytes().first() {
        Some(b'{') => "an object".into(),
        Some(b'[') => "an array".into(),
        _ if value.contains('{') => "a string with an object in it".into(),
        _ => shorten(value),
    }
}

/// `text` cut to a length that fits one log line.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Characters of a foreign value that an error repeats: enough to recognize it, too few to flood a log.
const SHOWN: usize = 120;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_object_is_refused_with_what_is_expected() {
        let error = Fields::parse("[1]").unwrap_err().to_string();
        assert!(error.contains("expected an object"), "{error}");
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_wins() {
        let fields = Fields::parse(r#"{"vni":1,"VNI":7,"other":null}"#).unwrap();
        assert_eq!(fields.integer("Vni", 0..=9), Ok(Some(7)));
        assert_eq!(fields.raw("other"), None);
        assert_eq!(fields.raw("absent"), None);
        assert_eq!(fields.names().collect::<Vec<_>>(), ["vni", "VNI", "other"]);
    }

    #[test]
    fn an_invalid_member_names_key_value_and_what_is_valid() {
        let fields = Fields::parse(r#"{"Port":-1,"GBP":"yes"}"#).unwrap();
        let error = fields.integer("Port", 1..=65535).unwrap_err();
        assert_eq!(error.to_string(), "Port is -1, expected a whole number from 1 to 65535");
        let error = fields.boolean("GBP", false).unwrap_err();
        assert_eq!(error.to_string(), r#"GBP is "yes", expected true or false"#);
        assert_eq!(fields.integer("absent", 1..=2), Ok(None));
    }

    #[test]
    fn what_follows_the_object_is_an_error() {
        for text in ["", "null", "[]", "{} x", r#"{"a":1"#, "{}{}"] {
            assert!(Fields::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}", long in "[0-9é]{0,300}") {
            let _ = Fields::parse(&text);
            prop_assert!(shorten(&long).chars().count() <= SHOWN + 1);
        }
    }
}
