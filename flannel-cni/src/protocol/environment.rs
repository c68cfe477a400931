use std::path::PathBuf;

use super::{Arguments, Code, Error};

/// What the runtime says in the environment. Variables that nobody knows are ignored.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Environment {
    /// What to do.
    pub verb: Verb,
    /// The container, as the runtime names it. Empty for `GC`, `STATUS` and `VERSION`.
    pub container_id: String,
    /// The path of the container's network namespace, if it has one.
    pub netns: Option<String>,
    /// The interface inside of the container. Empty for `GC`, `STATUS` and `VERSION`.
    pub interface: String,
    /// Further wishes of the runtime, as text: see [`arguments`](Self::arguments).
    pub arguments_text: String,
    /// Where other plugins are.
    pub path: Vec<PathBuf>,
    /// Whether the container's namespace may be the one that the plugin runs in.
    pub netns_override: bool,
}

/// What a runtime asks a plugin for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub enum Verb {
    Add,
    Check,
    Del,
    Gc,
    Status,
    #[default]
    Version,
}

impl Verb {
    /// As in `CNI_COMMAND`.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    const ALL: [Self; 6] =
        [Self::Add, Self::Check, Self::Del, Self::Gc, Self::Status, Self::Version];

    /// Whether it is about one container.
    const fn has_container(self) -> bool {
        matches!(self, Self::Add | Self::Check | Self::Del)
    }
}

impl Environment {
    /// Reads the variables, which `variable` gives by name.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidEnvironment`] with the names of all that are missing, or with the one that cannot be right.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name| variable(name).filter(|value| !value.is_empty());
        let missing = |names: &[&str]| {
            let message = format!("required env variables [{}] missing", names.join(","));
            Err(Error::new(Code::InvalidEnvironment, message))
        };
        let Some(command) = get("CNI_COMMAND") else { return missing(&["CNI_COMMAND"]) };
        let Some(verb) = Verb::ALL.into_iter().find(|verb| verb.text() == command) else {
            let message = format!("unknown CNI_COMMAND: {command}");
            return Err(Error::new(Code::InvalidEnvironment, message));
        };
        if verb == Verb::Version {
            return Ok(Self::default());
        }
        let mut absent = Vec::new();
        let mut require = |name, needed: bool| {
            let value = get(name);
            if value.is_none() && needed {
                absent.push(name);
            }
            value
        };
        let container_id = require("CNI_CONTAINERID", verb.has_container()).unwrap_or_default();
        let netns = require("CNI_NETNS", matches!(verb, Verb::Add | Verb::Check));
        let interface = require("CNI_IFNAME", verb.has_container()).unwrap_or_default();
        let path = require("CNI_PATH", true).unwrap_or_default();
        if !absent.is_empty() {
            return missing(&absent);
        }
        let netns_override = get("CNI_NETNS_OVERRIDE")
            .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
        let environment = Self {
            verb,
            container_id,
            netns,
            interface,
            arguments_text: get("CNI_ARGS").unwrap_or_default(),
            path: std::env::split_paths(&path).collect(),
            netns_override,
        };
        environment.validate()?;
        Ok(environment)
    }

    /// Whether container and interface have names that can be right: they become those of files and rules.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if !self.verb.has_container() {
            return Ok(());
        }
        let id = &*self.container_id;
        if !is_plain_name(id) {
            let message = "invalid characters in containerID";
            return Err(Error::new(Code::InvalidEnvironment, message).with_details(id));
        }
        if self.verb == Verb::Add && id.len() > LONGEST_ID {
            let message = format!("containerID is longer than {LONGEST_ID} characters");
            return Err(Error::new(Code::InvalidEnvironment, message).with_details(id));
        }
        match interface_name_flaw(&self.interface) {
            Some(flaw) => {
                Err(Error::new(Code::InvalidEnvironment, format!("interface name {flaw}"))
                    .with_details(&*self.interface))
            }
            None => Ok(()),
        }
    }

    /// The further wishes. Plugins that have nothing to do with them do not ask, so that they are of no consequence.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidEnvironment`], as [`Arguments`] says.
    pub fn arguments(&self) -> Result<Arguments, Error> {
        self.arguments_text.parse()
    }
}

/// Letters, digits, `_`, `.` and `-`, the first a letter or digit.
pub(crate) fn is_plain_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|it| it.is_ascii_alphanumeric() || matches!(it, '_' | '.' | '-'))
}

/// What is wrong with a name for an interface.
pub(crate) fn interface_name_flaw(name: &str) -> Option<&'static str> {
    let never = |it: char| matches!(it, '/' | ':' | '\0') || it.is_whitespace();
    match name {
        "" => Some("is empty"),
        "." | ".." => Some("is . or .."),
        _ if name.len() > 15 => Some("is longer than 15 characters"),
        _ if name.contains(never) => Some("contains / or : or whitespace characters"),
        _ => None,
    }
}

/// Names of files, of 255 bytes at most, hold more than it.
const LONGEST_ID: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        Environment::read(|name| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn what_is_missing_is_listed() {
        for (command, expected) in [
            ("", "CNI_COMMAND"),
            ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
            ("GC", "CNI_PATH"),
            ("STATUS", "CNI_PATH"),
        ] {
            let error = read(&[("CNI_COMMAND", command)]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert_eq!(error.message, format!("required env variables [{expected}] missing"));
        }
        assert_eq!(read(&[("CNI_COMMAND", "VERSION")]).unwrap().verb, Verb::Version);
    }

    #[test]
    fn names_that_cannot_be_right_are_refused() {
        let add = |id, interface| {
            read(&[
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", id),
                ("CNI_NETNS", "/run/netns/x"),
                ("CNI_IFNAME", interface),
                ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
                ("CNI_ARGS", ""),
                ("CNI_NETNS_OVERRIDE", "TRUE"),
            ])
        };
        let fine = add("ab-1.c_d", "eth0").unwrap();
        assert_eq!((fine.path.len(), fine.netns_override), (2, true));
        for (id, interface) in [
            ("../x", "eth0"),
            ("-a", "eth0"),
            ("a", "."),
            ("a", ".."),
            ("a", "a/b"),
            ("a", "a:b"),
            ("a", "a b"),
            ("a", "sixteencharacter"),
            ("a", "a\0b"),
            (&*"a".repeat(201), "eth0"),
        ] {
            let error = add(id, interface).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{id} {interface}");
        }
        assert_eq!(read(&[("CNI_COMMAND", "add")]).unwrap_err().code, Code::InvalidEnvironment);
    }

    proptest! {
        #[test]
        fn any_environment_is_read_without_panic(
            command in prop::sample::select(&["ADD", "DEL", "CHECK", "GC", "STATUS", "x"][..]),
            values in prop::collection::vec(any::<String>(), 4),
        ) {
            let _ = Environment::read(|name| match name {
                "CNI_COMMAND" => Some(command.to_owned()),
                "CNI_CONTAINERID" => Some(values[0].clone()),
                "CNI_IFNAME" => Some(values[1].clone()),
                "CNI_ARGS" => Some(values[2].clone()),
                _ => Some(values[3].clone()),
            })
            .and_then(|environment| environment.arguments());
        }
    }
}
