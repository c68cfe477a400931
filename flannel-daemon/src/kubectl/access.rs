//! Nodes, pods and services of a cluster, as far as they matter here.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_kube::{Client, ClientConfig, Resource};
use serde::Deserialize;

use super::KubectlError;

/// A cluster, and where in it things are.
#[derive(Clone, Debug)]
pub struct ClusterAccess {
    pub(super) client: Client,
    /// Where flannel's DaemonSet is.
    pub(super) flannel: String,
    /// Where pods and services are whose namespace is not named.
    pub(super) namespace: String,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

/// What every object has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    deletion_timestamp: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: String,
    pub(super) host_network: bool,
    pub(super) containers: Vec<Container>,
    pub(super) image_pull_secrets: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) container_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: String,
    pub(super) message: String,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Vec<PodIp>,
    pub(super) container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: IpAddr,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerStatus {
    pub(super) ready: bool,
    pub(super) state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    pub(super) waiting: Option<Waiting>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    pub(super) reason: String,
    pub(super) message: String,
}

/// A service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    pub(super) spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceSpec {
    pub(super) selector: BTreeMap<String, String>,
}

impl ClusterAccess {
    /// A cluster, with the namespace of flannel's DaemonSet, and the one that is meant where none is named; without it, the
    /// kubeconfig's.
    pub fn new(mut config: ClientConfig, flannel: &str, namespace: Option<&str>) -> Self {
        config.user_agent = concat!("kubectl-flannel/", env!("CARGO_PKG_VERSION")).into();
        let namespace = namespace.map(str::to_owned).or_else(|| config.namespace.clone());
        Self {
            client: Client::new(config),
            flannel: flannel.into(),
            namespace: namespace.unwrap_or_else(|| "default".into()),
        }
    }

    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<Pod, KubectlError> {
        let pods = Resource::namespaced("pods", namespace);
        parsed(&self.client.get(&pods, name).await?, || format!("{pods}/{name}"))
    }

    pub(super) async fn service(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Service, KubectlError> {
        let services = Resource::namespaced("services", namespace);
        parsed(&self.client.get(&services, name).await?, || format!("{services}/{name}"))
    }

    /// The pods with these labels.
    pub(super) async fn pods(
        &self,
        namespace: &str,
        labels: &str,
    ) -> Result<Vec<Pod>, KubectlError> {
        let resource = Resource::namespaced("pods", namespace).labelled(labels);
        let mut pods = Vec::new();
        let mut undecodable = None;
        let keep = |item: &str| match serde_json::from_str(item) {
            Ok(pod) => pods.push(pod),
            Err(error) => undecodable = Some(error),
        };
        self.client.list(&resource, PAGE, keep).await?;
        match undecodable {
            None => Ok(pods),
            Some(source) => Err(KubectlError::Decode { question: resource.to_string(), source }),
        }
    }

    /// flannel's pods, by their nodes. One that is being replaced counts only until there is another.
    pub(super) async fn flannels(&self) -> Result<BTreeMap<String, Pod>, KubectlError> {
        let mut pods = self.pods(&self.flannel, FLANNELS_LABEL).await?;
        pods.retain(|pod| pod.status.phase == "Running");
        // The last one of a node is taken.
        pods.sort_by_key(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods.into_iter().map(|pod| (pod.spec.node_name.clone(), pod)).collect())
    }

    /// Asks the program of flannel's in `pod` over HTTP, through the API server.
    pub(super) async fn ask(
        &self,
        pod: &Pod,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<String, KubectlError> {
        let pods = Resource::namespaced("pods", &self.flannel);
        let name = format!("{}:{}", pod.metadata.name, pod.health_port());
        let answer = self.client.get_part(&pods, &name, &["proxy", path], query).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Pod {
    /// The container of flannel's program, beside which there may be others.
    pub(super) fn flannel_container(&self) -> Option<&Container> {
        let containers = &self.spec.containers;
        containers.iter().find(|it| it.name == FLANNELS_CONTAINER).or_else(|| containers.first())
    }

    /// Where it answers questions about its health.
    fn health_port(&self) -> u16 {
        let mut ports = self.spec.containers.iter().flat_map(|container| &container.ports);
        ports.find(|port| port.name == "healthz").map_or(HEALTH_PORT, |port| port.container_port)
    }
}

pub(super) fn parsed<T: for<'a> Deserialize<'a>>(
    json: &[u8],
    question: impl FnOnce() -> String,
) -> Result<T, KubectlError> {
    serde_json::from_slice(json)
        .map_err(|source| KubectlError::Decode { question: question(), source })
}

/// How many objects are read at a time.
const PAGE: u32 = 500;
/// What flannel's pods have in flannel's manifest and in ours.
const FLANNELS_LABEL: &str = "app=flannel";
const FLANNELS_CONTAINER: &str = "kube-flannel";
/// The one of the manifests.
const HEALTH_PORT: u16 = 8081;
