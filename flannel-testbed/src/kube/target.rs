//! What requests are about, and which rights they take.

use super::Request;

/// What a path is about.
pub(super) struct Target {
    /// The API group; empty for the core's.
    group: String,
    version: String,
    pub(super) plural: String,
    /// The object's key, which has its namespace in front.
    pub(super) key: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) part: Option<String>,
}

/// A right to a kind of objects, as a rule of a role grants it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Right {
    /// Such as `watch`.
    pub verb: String,
    /// The API group; empty for the core's.
    pub group: String,
    /// The kind, with the part of it if it is to one: `nodes/status`.
    pub resource: String,
    /// The namespace. A right that is granted without one is for all of them.
    pub namespace: Option<String>,
}

impl Target {
    /// `None` if the API has no such path.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (group, rest) = match path.strip_prefix("/api/") {
            Some(rest) => ("", rest),
            None => path.strip_prefix("/apis/")?.split_once('/')?,
        };
        let (version, rest) = rest.split_once('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        let (namespace, parts) = match parts[..] {
            ["namespaces", namespace, _, ..] => (Some(namespace), &parts[2..]),
            _ => (None, &parts[..]),
        };
        let part = |n: usize| parts.get(n).map(|it| (*it).to_owned());
        let key = part(1).map(|name| match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        });
        let namespace = namespace.map(str::to_owned);
        let (group, version) = (group.into(), version.into());
        Some(Self { group, version, plural: part(0)?, key, namespace, part: part(2) })
    }

    /// What objects say that they are of, such as `networking.k8s.io/v1`.
    pub(super) fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }
}

impl Request {
    /// The right that it takes; `None` if it is not about objects.
    pub fn right(&self) -> Option<Right> {
        let target = Target::of(&self.path)?;
        let verb = match (self.method.as_str(), &target.key) {
            ("DELETE", _) => "delete",
            ("GET", Some(_)) => "get",
            ("GET", None) if self.is_watch() => "watch",
            ("GET", None) => "list",
            ("PATCH", _) => "patch",
            ("POST", _) => "create",
            _ => "update",
        };
        let part = target.part.map(|part| format!("/{part}")).unwrap_or_default();
        Some(Right {
            verb: verb.into(),
            group: target.group,
            resource: target.plural + &part,
            namespace: target.namespace,
        })
    }

    pub(super) fn is_watch(&self) -> bool {
        super::http::parameter(&self.query, "watch").is_some_and(|it| it == "true" || it == "1")
    }
}

impl Right {
    /// Whether whoever has this right may do what takes `asked`.
    pub(super) fn covers(&self, asked: &Self) -> bool {
        let namespace = self.namespace.clone().or_else(|| asked.namespace.clone());
        Self { namespace, ..self.clone() } == *asked
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, group, resource, .. } = self;
        write!(f, "cannot {verb} resource {resource:?} in API group {group:?} ")?;
        match &self.namespace {
            Some(namespace) => write!(f, "in the namespace {namespace:?}"),
            None => f.write_str("at the cluster scope"),
        }
    }
}
