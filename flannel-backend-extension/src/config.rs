//! The backend's options.

use std::time::Duration;

use flannel_core::{FieldError, Fields};
use serde::{Deserialize, Serialize};

/// The commands, as texts for a shell.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Commands {
    pub(crate) pre_startup: Option<String>,
    pub(crate) post_startup: Option<String>,
    pub(crate) subnet_add: Option<String>,
    pub(crate) subnet_remove: Option<String>,
    pub(crate) subnet_check: Option<String>,
    pub(crate) shutdown: Option<String>,
    /// How long one command may take.
    pub(crate) timeout: Duration,
}

impl Commands {
    pub(crate) fn read(options: &Fields) -> Result<Self, FieldError> {
        let command = |key: &str| {
            let text = options.parsed(key, "a command without NUL characters", |text| {
                (!text.contains('\0')).then(|| text.to_owned())
            })?;
            Ok(text.filter(|text| !text.trim().is_empty()))
        };
        let seconds = options.integer("Timeout", 1..=TIMEOUT_SECONDS)?.unwrap_or(TIMEOUT_SECONDS);
        Ok(Self {
            pre_startup: command("PreStartupCommand")?,
            post_startup: command("PostStartupCommand")?,
            subnet_add: command("SubnetAddCommand")?,
            subnet_remove: command("SubnetRemoveCommand")?,
            subnet_check: command("SubnetCheckCommand")?,
            shutdown: command("ShutdownCommand")?,
            timeout: Duration::from_secs(seconds),
        })
    }

    /// The members that nobody reads, which may be misspelled.
    pub(crate) fn unknown(options: &Fields) -> Vec<&str> {
        let known = |name: &&str| KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name));
        options.names().filter(|name| !known(name)).collect()
    }

    /// Whether starting may have made the data path anew, without its peers.
    pub(crate) fn start_anew(&self) -> bool {
        self.pre_startup.is_some() || self.post_startup.is_some()
    }
}

const KNOWN: [&str; 8] = [
    "Type",
    "PreStartupCommand",
    "PostStartupCommand",
    "SubnetAddCommand",
    "SubnetRemoveCommand",
    "SubnetCheckCommand",
    "ShutdownCommand",
    "Timeout",
];

/// Loading a kernel module and calling a cloud's API take seconds; a command that takes longer than this hangs.
const TIMEOUT_SECONDS: u64 = 25;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Commands, String> {
        Commands::read(&Fields::parse(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_read_in_any_case_and_blank_commands_are_none() {
        let json = r#"{"type":"extension","subnetaddcommand":"add","SubnetRemoveCommand":" ","TIMEOUT":5}"#;
        let expected = Commands {
            subnet_add: Some("add".into()),
            timeout: Duration::from_secs(5),
            ..Commands::default()
        };
        assert_eq!(read(json), Ok(expected));
        assert_eq!(read("{}").unwrap().timeout, Duration::from_secs(25));
    }

    #[test]
    fn what_is_invalid_is_named_with_what_would_be_valid() {
        for (json, words) in [
            (r#"{"SubnetAddCommand":["a"]}"#, "SubnetAddCommand is an array, expected a command"),
            (r#"{"ShutdownCommand":"a\u0000"}"#, "expected a command without NUL characters"),
            (r#"{"Timeout":0}"#, "Timeout is 0, expected a whole number from 1 to 25"),
        ] {
            let said = read(json).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn unknown_keys_are_listed() {
        let options = Fields::parse(r#"{"Type":"extension","SubnetAddComand":"a"}"#).unwrap();
        assert_eq!(Commands::unknown(&options), ["SubnetAddComand"]);
    }
}
