//! What can be asked for, and the URLs of it.

use std::fmt;

/// What is done with an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Verb {
    /// Make one.
    Create,
    /// Remove one.
    Delete,
    /// Read one object.
    Get,
    /// Read all.
    List,
    /// Change a part of one.
    Patch,
    /// Follow all.
    Watch,
}

impl Verb {
    /// The method of its requests.
    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::Create => "POST",
            Self::Delete => "DELETE",
            Self::Get | Self::List | Self::Watch => "GET",
            Self::Patch => "PATCH",
        }
    }
}

/// A kind of objects, such as nodes, or those of them with one name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resource {
    plural: &'static str,
    namespace: Option<String>,
    /// The one object that lists and watches are about.
    only: Option<String>,
    /// The labels that those have which lists and watches are about.
    labels: Option<String>,
}

impl Resource {
    /// A kind of the core API that is in no namespace, such as `nodes`.
    pub fn cluster(plural: &'static str) -> Self {
        Self { plural, namespace: None, only: None, labels: None }
    }

    /// A kind of the core API, such as `configmaps`, in a namespace.
    pub fn namespaced(plural: &'static str, namespace: &str) -> Self {
        Self { plural, namespace: Some(namespace.into()), only: None, labels: None }
    }

    /// The same, of the object called `name` alone.
    #[must_use]
    pub fn only(self, name: &str) -> Self {
        Self { only: Some(name.into()), ..self }
    }

    /// The same, of objects with these labels, such as `app=flannel`, alone.
    #[must_use]
    pub fn labelled(self, labels: &str) -> Self {
        Self { labels: Some(labels.into()), ..self }
    }

    /// The same without that restriction.
    pub(crate) fn of_all(self) -> Self {
        Self { only: None, ..self }
    }

    /// The path of all of them, or of the one called `name`, or of a part of that.
    pub(crate) fn path(&self, name: Option<&str>, subresource: Option<&str>) -> String {
        match name {
            Some(name) => self.below(name, subresource.as_slice()),
            None => self.all(),
        }
    }

    /// The path to something below the one called `name`.
    pub(crate) fn below(&self, name: &str, parts: &[&str]) -> String {
        let parts = std::iter::once(&name).chain(parts);
        parts.fold(self.all(), |path, part| path + "/" + &escaped(part))
    }

    fn all(&self) -> String {
        let namespace = self.namespace.as_deref();
        let namespace = namespace.map(|it| format!("/namespaces/{}", escaped(it)));
        format!("/api/v1{}/{}", namespace.unwrap_or_default(), self.plural)
    }

    /// What selects the objects that lists and watches are about.
    pub(crate) fn selectors(&self) -> Vec<(&'static str, String)> {
        let name =
            self.only.as_ref().map(|name| ("fieldSelector", format!("metadata.name={name}")));
        let labels = self.labels.clone().map(|labels| ("labelSelector", labels));
        name.into_iter().chain(labels).collect()
    }
}

/// A path with a query.
pub(crate) fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let pairs = query.iter().map(|(key, value)| format!("{key}={}", escaped(value)));
    let query = pairs.collect::<Vec<_>>().join("&");
    if query.is_empty() { path.into() } else { format!("{path}?{query}") }
}

/// A text as a part of a URL.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| match is_plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Watch => "watch",
        })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)?;
        let named = self.only.as_ref().map(|name| format!("/{name}"));
        f.write_str(&named.unwrap_or_default())?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_objects_and_escape_what_could_be_taken_for_more() {
        let nodes = Resource::cluster("nodes");
        assert_eq!(nodes.path(None, None), "/api/v1/nodes");
        assert_eq!(nodes.path(Some("n1"), Some("status")), "/api/v1/nodes/n1/status");
        let pods = Resource::namespaced("pods", "n").labelled("a=b");
        assert_eq!(pods.selectors(), [("labelSelector", "a=b".to_owned())]);
        let below = pods.below("p:8081", &["proxy", "readyz"]);
        assert_eq!(below, "/api/v1/namespaces/n/pods/p%3A8081/proxy/readyz");
        assert_eq!(nodes.path(Some("../a?b"), None), "/api/v1/nodes/..%2Fa%3Fb");
        let maps = Resource::namespaced("configmaps", "kube-flannel").only("kube-flannel-cfg");
        assert_eq!(maps.path(None, None), "/api/v1/namespaces/kube-flannel/configmaps");
        assert_eq!(maps.to_string(), "configmaps/kube-flannel-cfg in namespace kube-flannel");
        let [(key, selector)] = &maps.selectors()[..] else { panic!("{maps:?}") };
        assert_eq!(
            with_query("/x", &[("watch", "true"), (key, selector)]),
            "/x?watch=true&fieldSelector=metadata.name%3Dkube-flannel-cfg"
        );
    }
}
