//! How pods and services are named on the command line.

use std::{fmt, str::FromStr};

/// A pod or a service, as somebody names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetName {
    /// `None` for a name alone: it is that of a pod, or else of a service.
    pub(crate) kind: Option<TargetKind>,
    /// `None` for the one of the command line or of the kubeconfig.
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

/// What a name is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TargetKind {
    Pod,
    Service,
}

/// Not how a pod or a service is named.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "expected a name such as web-1, pod/web-1, svc/web, or prod/svc/web with its namespace in front"
)]
pub struct InvalidTargetName;

impl FromStr for TargetName {
    type Err = InvalidTargetName;

    fn from_str(text: &str) -> Result<Self, InvalidTargetName> {
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, kind, name) = match parts[..] {
            [name] => (None, None, name),
            [first, name] => match kind(first) {
                Some(kind) => (None, Some(kind), name),
                None => (Some(first), None, name),
            },
            [namespace, word, name] => {
                (Some(namespace), Some(kind(word).ok_or(InvalidTargetName)?), name)
            }
            _ => return Err(InvalidTargetName),
        };
        if !is_name(name) || namespace.is_some_and(|namespace| !is_name(namespace)) {
            return Err(InvalidTargetName);
        }
        Ok(Self { kind, namespace: namespace.map(Into::into), name: name.into() })
    }
}

fn kind(word: &str) -> Option<TargetKind> {
    match word {
        "po" | "pod" | "pods" => Some(TargetKind::Pod),
        "service" | "services" | "svc" => Some(TargetKind::Service),
        _ => None,
    }
}

/// Whether an object can have this name: RFC 1123.
fn is_name(text: &str) -> bool {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let ends = [text.bytes().next(), text.bytes().next_back()];
    let ends_well = |end: Option<u8>| end.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 253 && text.bytes().all(fits) && ends.into_iter().all(ends_well)
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Service => "service",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_as_kubectl_reads_them() {
        for (text, namespace, kind, name) in [
            ("web-1", None, None, "web-1"),
            ("pod/web-1", None, Some(TargetKind::Pod), "web-1"),
            ("svc/web", None, Some(TargetKind::Service), "web"),
            ("prod/web-1", Some("prod"), None, "web-1"),
            ("prod/service/web", Some("prod"), Some(TargetKind::Service), "web"),
        ] {
            let namespace = namespace.map(str::to_owned);
            let expected = TargetName { kind, namespace, name: name.into() };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "/", "pod/", "/web", "a/b/c", "a/pod/b/c", "Web", "a b", "../x", "a/svc/"]
        {
            assert_eq!(text.parse::<TargetName>(), Err(InvalidTargetName), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_name_leaves_its_part_of_a_path(text in "[a-z/.:?# ]{0,12}|\\PC{0,20}") {
            if let Ok(target) = text.parse::<TargetName>() {
                prop_assert!(!target.name.contains(['/', '?', '#']));
            }
        }
    }
}
