//! `kubectl flannel status`: a line for each node.

use std::{collections::BTreeMap, fmt};

use flannel_kube::{MetadataOf, NodeView, Resource};
use flannel_store::KubernetesStore;
use futures::{StreamExt, stream};

use super::{ClusterAccess, KubectlError, access::Pod};

/// All nodes. [`fmt::Display`] prints a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClusterStatus {
    rows: Vec<Row>,
}

/// A node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Row {
    node: String,
    subnets: Vec<String>,
    addresses: Vec<String>,
    backend: String,
    mtu: Option<String>,
    /// `None` if it is not known.
    ready: Option<bool>,
    /// Whether the Node object says the above.
    is_readable: bool,
    problems: Vec<String>,
}

/// What a node's flannel says when it is asked.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct NodeAnswer {
    ready: Option<bool>,
    mtu: Option<String>,
    problems: Vec<String>,
}

/// Asks all nodes, at most so many at a time.
///
/// # Errors
///
/// [`KubectlError`] if nodes or pods cannot be listed. A node that does not answer is a problem of that node.
pub async fn status(access: &ClusterAccess, prefix: &str) -> Result<ClusterStatus, KubectlError> {
    let names = Names::new(prefix)?;
    let flannels = access.flannels().await?;
    let mut rows = Vec::new();
    let keep = |item: &str| {
        rows.push(match serde_json::from_str::<NodeView<'_>>(item) {
            Ok(node) => Row::of(&node, &names),
            Err(error) => Row::unreadable(item, &error),
        });
    };
    access.client.list(&Resource::cluster("nodes"), 100, keep).await?;
    let answers: BTreeMap<_, _> = stream::iter(&flannels)
        .map(|(node, pod)| async move { (node.clone(), ask(access, pod).await) })
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    for row in &mut rows {
        row.merge(answers.get(&row.node).cloned());
    }
    Ok(ClusterStatus { rows })
}

async fn ask(access: &ClusterAccess, pod: &Pod) -> NodeAnswer {
    let mut answer = NodeAnswer::default();
    match access.ask(pod, "readyz", &[]).await {
        Ok(text) => {
            answer.ready = Some(true);
            answer.problems = text.lines().skip(1).map(str::to_owned).collect();
        }
        Err(KubectlError::Request(error)) => match error.status() {
            // Of the node itself: the API server gives reasons.
            Some(status) if status.code == 503 && status.reason.is_empty() => {
                answer.ready = Some(false);
                let text = status.message.trim_start_matches("flannel-node is not ready").trim();
                answer.problems.push(text.to_owned());
            }
            _ => answer.problems.push(format!("does not answer: {error}: {}", error.reason)),
        },
        Err(error) => answer.problems.push(error.to_string()),
    }
    if answer.ready.is_some()
        && let Ok(metrics) = access.ask(pod, "metrics", &[]).await
    {
        answer.mtu = mtu(&metrics);
    }
    answer
}

/// The MTU in a page of metrics.
fn mtu(metrics: &str) -> Option<String> {
    let value = metrics.lines().find_map(|line| line.strip_prefix("flannel_mtu_bytes "));
    value.map(|value| value.trim().to_owned())
}

impl ClusterStatus {
    /// Whether there are nodes, and all are ready.
    pub fn is_ready(&self) -> bool {
        let is_ready = |row: &Row| row.ready == Some(true) && row.is_readable;
        !self.rows.is_empty() && self.rows.iter().all(is_ready)
    }
}

/// The annotations that are looked at.
struct Names {
    addresses: [String; 2],
    backend: String,
    managed: String,
}

impl Names {
    fn new(prefix: &str) -> Result<Self, KubectlError> {
        let name = |suffix| KubernetesStore::annotation(prefix, suffix);
        Ok(Self {
            addresses: [name("public-ip")?, name("public-ipv6")?],
            backend: name("backend-type")?,
            managed: name("kube-subnet-manager")?,
        })
    }
}

impl Row {
    fn of(node: &NodeView<'_>, names: &Names) -> Self {
        let annotation = |name: &String| {
            let value = node.metadata.annotations.get(name.as_str());
            value.filter(|value| !value.is_empty()).map(ToString::to_string)
        };
        let mut row = Self {
            node: node.metadata.name.to_string(),
            subnets: node.spec.pod_cidrs.iter().map(ToString::to_string).collect(),
            addresses: names.addresses.iter().filter_map(annotation).collect(),
            backend: annotation(&names.backend).unwrap_or_default(),
            is_readable: true,
            ..Self::default()
        };
        if row.subnets.is_empty() {
            row.problems.push("it has no podCIDR".into());
        }
        if annotation(&names.managed).is_none_or(|value| value != "true") {
            row.problems.push(
                "it has no annotations of flannel's: no node of flannel has run there".into(),
            );
        }
        row
    }

    /// The node of a Node object with values that none has.
    fn unreadable(item: &str, error: &serde_json::Error) -> Self {
        let node = serde_json::from_str::<MetadataOf<'_>>(item)
            .map_or_else(|_| "unknown".to_owned(), |it| it.metadata.name.to_string());
        let problems = vec![format!("its Node object cannot be read: {error}")];
        Self { node, problems, ..Self::default() }
    }

    fn merge(&mut self, answer: Option<NodeAnswer>) {
        match answer {
            None => self.problems.push("no pod of flannel runs there".into()),
            Some(NodeAnswer { ready, mtu, problems }) => {
                (self.ready, self.mtu) = (ready, mtu);
                self.problems.extend(problems);
            }
        }
    }

    fn cells(&self) -> [String; 7] {
        let ready = match self.ready {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let all = [
            self.node.clone(),
            self.subnets.join(","),
            self.addresses.join(","),
            self.backend.clone(),
            self.mtu.clone().unwrap_or_default(),
            ready.into(),
            self.problems.join("; "),
        ];
        all.map(|cell| if cell.is_empty() { "-".into() } else { cell })
    }
}

impl fmt::Display for ClusterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["NODE", "SUBNET", "ADDRESS", "BACKEND", "MTU", "READY", "PROBLEMS"];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let widths: [usize; 7] = std::array::from_fn(|column| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
        });
        for line in &lines {
            let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// How many nodes are asked at the same time.
const AT_A_TIME: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Row {
        Row::of(
            &serde_json::from_str(json).unwrap(),
            &Names::new("flannel.alpha.coreos.com").unwrap(),
        )
    }

    #[test]
    fn nodes_are_a_table() {
        let mut all = row(
            r#"{"metadata":{"name":"node0","annotations":{"flannel.alpha.coreos.com/kube-subnet-manager":"true",
               "flannel.alpha.coreos.com/backend-type":"vxlan","flannel.alpha.coreos.com/public-ip":"192.0.2.1",
               "flannel.alpha.coreos.com/public-ipv6":"2001:db8::1"}},
               "spec":{"podCIDRs":["10.244.0.0/24","fd00:10:244::/64"]}}"#,
        );
        let metrics = "# TYPE flannel_mtu_bytes gauge\nflannel_mtu_bytes 1450\nflannel_ready 1\n";
        let problems = vec!["peers: one uses another backend".into()];
        all.merge(Some(NodeAnswer { ready: Some(true), mtu: mtu(metrics), problems }));
        let mut none = row(r#"{"metadata":{"name":"new"},"spec":{}}"#);
        none.merge(None);
        let mut down = all.clone();
        (down.node, down.addresses) = ("node10".into(), Vec::new());
        down.problems.clear();
        down.merge(Some(NodeAnswer {
            ready: Some(false),
            mtu: None,
            problems: vec!["lease: none is held".into()],
        }));
        let status = ClusterStatus { rows: vec![none, all, down] };
        let expected = "\
NODE    SUBNET                          ADDRESS                BACKEND  MTU   READY    PROBLEMS
new     -                               -                      -        -     unknown  it has no podCIDR; it has no annotations of flannel's: no node of flannel has run there; no pod of flannel runs there
node0   10.244.0.0/24,fd00:10:244::/64  192.0.2.1,2001:db8::1  vxlan    1450  yes      peers: one uses another backend
node10  10.244.0.0/24,fd00:10:244::/64  -                      vxlan    -     no       lease: none is held
";
        assert_eq!(status.to_string(), expected);
        assert!(!status.is_ready());
        let ready = ClusterStatus { rows: vec![status.rows[1].clone()] };
        assert!(ready.is_ready());
        assert!(!ClusterStatus { rows: vec![] }.is_ready(), "nobody is");
    }
}
