//! `kubectl flannel explain`: both nodes of a path are asked.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use futures::future::join_all;

use super::{
    ClusterAccess, KubectlError,
    access::{Pod, parsed},
    target_name::{TargetKind, TargetName},
};
use crate::explain::Explanation;

/// What the nodes at both ends say of the paths between pods. [`fmt::Display`] prints it for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PathReport {
    paths: Vec<Path>,
    /// The endpoints of the service that were left out.
    left_out: usize,
}

/// The path between two pods, in one address family.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Path {
    source: End,
    destination: End,
    views: Vec<View>,
}

/// One end of a path.
#[derive(Clone, Debug, Eq, PartialEq)]
struct End {
    pod: String,
    node: String,
    address: IpAddr,
}

/// What one node says.
#[derive(Clone, Debug, Eq, PartialEq)]
struct View {
    node: String,
    says: Result<Explanation, String>,
}

/// A pod with its name for people.
struct Target {
    title: String,
    pod: Pod,
}

/// Asks the nodes of both ends about the path from `source` to `destination`, or to the pods behind it if that is a service.
///
/// # Errors
///
/// [`KubectlError`] if pods cannot be found, or have no addresses in the pod network. A node that does not answer is a part of the
/// report.
pub async fn explain(
    access: &ClusterAccess,
    source: &TargetName,
    destination: &TargetName,
) -> Result<PathReport, KubectlError> {
    let flannels = access.flannels().await?;
    let source = access.source(source).await?;
    let mut destinations = access.targets(destination).await?;
    let left_out = destinations.len().saturating_sub(MOST_ENDPOINTS);
    destinations.truncate(MOST_ENDPOINTS);
    let mut paths = Vec::new();
    for destination in &destinations {
        paths.extend(between(&source, destination)?);
    }
    for path in &mut paths {
        let nodes = path.nodes();
        let (from, to) = (path.source.address.to_string(), path.destination.address.to_string());
        let asked = nodes.iter().map(|node| view(access, &flannels, node, &from, &to));
        path.views = join_all(asked).await;
    }
    Ok(PathReport { paths, left_out })
}

impl ClusterAccess {
    /// The pod of that name: packets of a service come from pods.
    async fn source(&self, target: &TargetName) -> Result<Target, KubectlError> {
        let namespace = target.namespace.as_deref().unwrap_or(&self.namespace);
        if target.kind == Some(TargetKind::Service) {
            return Err(KubectlError::NoPath {
                target: format!("service {namespace}/{}", target.name),
                reason: "sends no packets: name one of its pods as the source".into(),
            });
        }
        Ok(Target::new(namespace, self.pod(namespace, &target.name).await?))
    }

    /// The pod of that name, or the pods behind the service.
    async fn targets(&self, target: &TargetName) -> Result<Vec<Target>, KubectlError> {
        let TargetName { kind, namespace, name } = target;
        let namespace = namespace.as_deref().unwrap_or(&self.namespace);
        if *kind != Some(TargetKind::Service) {
            match self.pod(namespace, name).await {
                Ok(pod) => return Ok(vec![Target::new(namespace, pod)]),
                Err(KubectlError::Request(error)) if kind.is_none() && error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let selector = self.service(namespace, name).await?.spec.selector;
        let title = format!("{} {namespace}/{name}", TargetKind::Service);
        let none =
            |reason: &str| KubectlError::NoPath { target: title.clone(), reason: reason.into() };
        if selector.is_empty() {
            return Err(none("selects no pods: name a pod in its place"));
        }
        let labels = selector.iter().map(|(key, value)| format!("{key}={value}"));
        let pods = self.pods(namespace, &labels.collect::<Vec<_>>().join(",")).await?;
        let ready = |pod: &Pod| {
            let containers = &pod.status.container_statuses;
            pod.status.phase == "Running" && containers.iter().all(|container| container.ready)
        };
        let ready: Vec<_> = pods.into_iter().filter(ready).collect();
        if ready.is_empty() {
            return Err(none("has no pod that is ready"));
        }
        Ok(ready.into_iter().map(|pod| Target::new(namespace, pod)).collect())
    }
}

impl Target {
    fn new(namespace: &str, pod: Pod) -> Self {
        Self { title: format!("{namespace}/{}", pod.metadata.name), pod }
    }

    fn no_path(&self, reason: &str) -> KubectlError {
        KubectlError::NoPath { target: format!("pod {}", self.title), reason: reason.into() }
    }
}

/// The paths between two pods: one for each family that both have.
fn between(source: &Target, destination: &Target) -> Result<Vec<Path>, KubectlError> {
    for target in [source, destination] {
        if target.pod.spec.host_network {
            return Err(target.no_path(
                "uses its node's network: its packets are no concern of the pod network, name another pod",
            ));
        }
        if target.pod.spec.node_name.is_empty() {
            return Err(target.no_path("is on no node yet: kubectl describe says why"));
        }
        if target.pod.status.pod_ips.is_empty() {
            return Err(target.no_path("has no address: kubectl describe says why"));
        }
    }
    let end = |target: &Target, address| End {
        pod: target.title.clone(),
        node: target.pod.spec.node_name.clone(),
        address,
    };
    let mut paths = Vec::new();
    for from in source.pod.status.pod_ips.iter().map(|it| it.ip) {
        let others = destination.pod.status.pod_ips.iter().map(|it| it.ip);
        for to in others.filter(|to| to.is_ipv4() == from.is_ipv4()) {
            let (source, destination) = (end(source, from), end(destination, to));
            paths.push(Path { source, destination, views: Vec::new() });
        }
    }
    if paths.is_empty() {
        return Err(destination.no_path("has no address of a family that the other pod has"));
    }
    Ok(paths)
}

async fn view(
    access: &ClusterAccess,
    flannels: &BTreeMap<String, Pod>,
    node: &str,
    from: &str,
    to: &str,
) -> View {
    let asked = async {
        let pod =
            flannels.get(node).ok_or_else(|| KubectlError::NoFlannel { node: node.into() })?;
        let query = [("source", from), ("destination", to)];
        let answer = access.ask(pod, "explain", &query).await?;
        parsed(answer.as_bytes(), || format!("/explain of the node {node}"))
    };
    let says = asked.await.map_err(|error| match &error {
        KubectlError::Request(request) if request.is_not_found() => format!(
            "flannel on this node answers no such question: start it with --healthz-explain, which \
             is off because whoever reaches the port may ask then ({})",
            request.reason
        ),
        _ => crate::error::chain(&error),
    });
    View { node: node.into(), says }
}

impl PathReport {
    /// Whether nothing is broken, as far as all nodes can tell.
    pub fn is_fine(&self) -> bool {
        let views = self.paths.iter().flat_map(|path| &path.views);
        views.map(|view| &view.says).all(|says| says.as_ref().is_ok_and(|it| it.broken.is_none()))
    }
}

impl Path {
    /// The nodes of its ends, each once.
    fn nodes(&self) -> Vec<String> {
        let mut nodes = vec![self.source.node.clone(), self.destination.node.clone()];
        nodes.dedup();
        nodes
    }
}

impl fmt::Display for PathReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Path { source, destination, views } in &self.paths {
            writeln!(f, "{source} to {destination}")?;
            for View { node, says } in views {
                writeln!(f, "  {node} says:")?;
                let text = match says {
                    Ok(explanation) => explanation.to_string(),
                    Err(error) => error.clone(),
                };
                text.lines().try_for_each(|line| writeln!(f, "    {line}"))?;
            }
        }
        if self.left_out > 0 {
            writeln!(f, "pods behind the service that were not asked: {}", self.left_out)?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} on {})", self.pod, self.address, self.node)
    }
}

/// How many pods behind a service are looked at.
const MOST_ENDPOINTS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, node: &str, ips: &[&str]) -> Target {
        let ips: Vec<_> = ips.iter().map(|ip| serde_json::json!({ "ip": ip })).collect();
        let pod = serde_json::json!({
            "metadata": {"name": name}, "spec": {"nodeName": node}, "status": {"podIPs": ips},
        });
        Target::new("default", serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_path_for_each_family_that_both_have() {
        let a = target("a", "n1", &["10.244.1.2", "fd00::2"]);
        let b = target("b", "n2", &["fd00:1::3", "10.244.2.3"]);
        let pairs = |one: &Target, other: &Target| {
            let paths = between(one, other).unwrap().into_iter();
            paths
                .map(|path| format!("{} {:?}", path.destination.address, path.nodes()))
                .collect::<Vec<_>>()
        };
        assert_eq!(pairs(&a, &b), [r#"10.244.2.3 ["n1", "n2"]"#, r#"fd00:1::3 ["n1", "n2"]"#]);
        let c = target("c", "n1", &["10.244.1.9"]);
        assert_eq!(pairs(&a, &c), [r#"10.244.1.9 ["n1"]"#]);
    }

    #[test]
    fn pods_without_a_path_are_named_with_the_reason() {
        let a = target("a", "n1", &["10.244.1.2"]);
        let mut host = target("host", "n1", &["192.0.2.1"]);
        host.pod.spec.host_network = true;
        for (other, words) in [
            (host, "pod default/host uses its node's network"),
            (target("b", "", &[]), "pod default/b is on no node yet"),
            (target("b", "n2", &[]), "pod default/b has no address"),
            (target("b", "n2", &["fd00::1"]), "has no address of a family"),
        ] {
            let error = between(&a, &other).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_report_is_what_both_nodes_say() {
        let a = target("a", "n1", &["10.244.1.2"]);
        let mut path = between(&a, &target("b", "n2", &["10.244.2.3"])).unwrap().remove(0);
        let json = r#"{"source":"10.244.1.2","destination":"10.244.2.3","passed":[{"link":"network","says":"10.244.0.0/16"}],
            "broken":{"link":"route","says":"there is none","remedy":"start the node"}}"#;
        let broken = Ok(serde_json::from_str(json).unwrap());
        path.views = vec![
            View { node: "n1".into(), says: broken },
            View { node: "n2".into(), says: Err("no answer".into()) },
        ];
        let report = PathReport { paths: vec![path], left_out: 2 };
        assert!(!report.is_fine());
        let expected = "\
default/a (10.244.1.2 on n1) to default/b (10.244.2.3 on n2)
  n1 says:
    ok      network           10.244.0.0/16
    broken  route             there is none
    remedy                    start the node
  n2 says:
    no answer
pods behind the service that were not asked: 2
";
        assert_eq!(report.to_string(), expected);
    }
}
