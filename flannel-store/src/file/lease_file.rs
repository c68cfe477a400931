//! The text of one lease file.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flannel_core::NodeId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What one lease file says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) value: String,
    pub(super) owner: Option<NodeId>,
    pub(super) revision: u64,
    pub(super) expires: Option<SystemTime>,
}

/// The second line.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "PascalCase")]
struct Ours {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

/// Why a file is not a lease file.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("it is empty")]
    Empty,
    #[error("Expires is {text:?}, expected a time such as 2026-11-21T10:00:00Z")]
    Expires { text: String },
    #[error("it is not JSON: {0}")]
    Json(serde_json::Error),
    #[error("its second value is not one of ours: {0}")]
    Ours(serde_json::Error),
    #[error("something follows its second value")]
    Surplus,
    #[error("it is not UTF-8")]
    Utf8,
}

impl Entry {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, EntryError> {
        let text = std::str::from_utf8(bytes).map_err(|_| EntryError::Utf8)?;
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        let value = values.next().ok_or(EntryError::Empty)?.map_err(EntryError::Json)?;
        let ours = match values.next() {
            None => Ours::default(),
            Some(ours) => {
                let ours = ours.map_err(EntryError::Ours)?;
                serde_json::from_str(ours.get()).map_err(EntryError::Ours)?
            }
        };
        if values.next().is_some() {
            return Err(EntryError::Surplus);
        }
        let expires = ours
            .expires
            .map(|text| humantime::parse_rfc3339(&text).map_err(|_| EntryError::Expires { text }));
        Ok(Self {
            value: value.get().into(),
            owner: ours.node,
            revision: ours.revision,
            expires: expires.transpose()?,
        })
    }

    pub(super) fn print(&self) -> String {
        let expires = self.expires.map(|time| humantime::format_rfc3339(time).to_string());
        let ours = Ours { node: self.owner.clone(), revision: self.revision, expires };
        let ours = serde_json::to_string(&ours).expect("three plain members are valid JSON");
        format!("{}\n{ours}\n", self.value)
    }
}

/// When something ends that lasts `ttl` from `now` on: a whole second, so that people can read it, and never early.
pub(super) fn expiry(now: SystemTime, ttl: Duration) -> SystemTime {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = now.saturating_add(ttl);
    let seconds = end.as_secs().saturating_add(u64::from(end.subsec_nanos() > 0));
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND))
}

/// 9999-12-31T23:59:59Z, the last time that RFC 3339 can express.
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALUE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;

    #[test]
    fn a_lease_file_is_two_lines_that_a_person_can_read() {
        let expires = expiry(UNIX_EPOCH + Duration::from_millis(1_795_255_199_001), Duration::ZERO);
        let entry = Entry {
            value: VALUE.into(),
            owner: NodeId::new("n1").ok(),
            revision: 7,
            expires: Some(expires),
        };
        let text = format!(
            "{VALUE}\n{{\"Node\":\"n1\",\"Revision\":7,\"Expires\":\"2026-11-21T10:00:00Z\"}}\n"
        );
        assert_eq!(entry.print(), text);
        assert_eq!(Entry::parse(text.as_bytes()).unwrap(), entry);
    }

    #[test]
    fn a_file_written_by_hand_is_a_reservation() {
        let text = "\n{\n  \"PublicIP\": \"192.0.2.1\"\n}\n\n";
        let entry = Entry::parse(text.as_bytes()).unwrap();
        assert_eq!((entry.owner, entry.revision, entry.expires), (None, 0, None));
        assert_eq!(entry.value, text.trim());
    }

    #[test]
    fn broken_files_say_what_is_wrong() {
        for (text, reason) in [
            ("", "it is empty"),
            ("\u{0}\u{0}", "it is not JSON: expected value"),
            ("{\"PublicIP\":\"192", "it is not JSON: EOF while parsing a string"),
            (
                "{}\n{\"Node\":\"n1\",\"Rev",
                "its second value is not one of ours: EOF while parsing a string",
            ),
            (
                "{}\n{\"Node\":7}",
                "its second value is not one of ours: invalid type: integer `7`, expected a string",
            ),
            ("{}{}{}", "something follows its second value"),
            ("{}{}x", "something follows its second value"),
            (
                "{}{\"Expires\":\"soon\"}",
                "Expires is \"soon\", expected a time such as 2026-11-21T10:00:00Z",
            ),
        ] {
            let error = Entry::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
        assert!(matches!(Entry::parse(b"{\"a\":\"\xff\"}"), Err(EntryError::Utf8)));
    }

    #[test]
    fn no_time_to_live_is_too_long() {
        let end = expiry(SystemTime::now(), Duration::MAX);
        assert_eq!(humantime::format_rfc3339(end).to_string(), "9999-12-31T23:59:59Z");
    }

    proptest! {
        #[test]
        fn every_entry_survives_its_text(
            value in "\\PC{0,30}",
            owner in proptest::option::of("[!-~]{1,30}"),
            revision: u64,
            expires in proptest::option::of(0..LAST_SECOND),
        ) {
            let entry = Entry {
                value: serde_json::to_string(&value).unwrap(),
                owner: owner.map(|name| NodeId::new(name).unwrap()),
                revision,
                expires: expires.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
            };
            prop_assert_eq!(Entry::parse(entry.print().as_bytes()).unwrap(), entry);
        }

        #[test]
        fn a_torn_file_is_never_another_lease(cut in 0usize..200) {
            let entry = Entry {
                value: VALUE.into(),
                owner: NodeId::new("n1").ok(),
                revision: 1234,
                expires: Some(UNIX_EPOCH + Duration::from_secs(1_795_255_200)),
            };
            let text = entry.print();
            let torn = &text.as_bytes()[..cut.min(text.len())];
            if let Ok(read) = Entry::parse(torn) {
                // All that may be lost is the last line break, or the whole second line.
                prop_assert!(read == entry || (read.value == VALUE && torn.len() <= VALUE.len() + 1));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), ours in "\\PC{0,60}") {
            let _ = Entry::parse(&bytes);
            let _ = Entry::parse(format!("{VALUE}\n{ours}").as_bytes());
            let _ = Entry::parse(format!("{VALUE}\n{{\"Expires\":{ours:?},\"Node\":{ours:?}}}").as_bytes());
        }
    }
}
