//! What a daemon is to do, as one value.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use flannel_backend::UplinkOptions;
use flannel_core::{NetworkConfig, NodeId, OnLeaseLoss};
use flannel_firewall::FirewallOptions;
#[cfg(feature = "etcd")]
use flannel_store::EtcdConfig;
#[cfg(feature = "kubernetes")]
use flannel_store::{NetworkSource, NodeName};

/// What a daemon is to do. The defaults are flanneld's.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Where the leases live.
    pub store: StoreOptions,
    /// The network to store if the store has none.
    pub network: Option<NetworkConfig>,
    /// The node's name in the store, by which it keeps its lease when its address changes. Without it, the id in the file `node-id` of
    /// [`state_dir`](Self::state_dir); without that, its public address.
    pub node_id: Option<NodeId>,
    /// The folder for what has to outlive a reboot; `/var/lib/flannel-node` if that is on a disk.
    pub state_dir: Option<PathBuf>,
    /// How long the lease lasts without a renewal: 24 h as flannel's.
    pub lease_ttl: Duration,
    /// How much of its life the lease has at least when it is renewed: 1 h as flannel's.
    pub renew_margin: Duration,
    /// What to do when another node has the lease, or it was deleted.
    pub on_lease_loss: OnLeaseLoss,
    /// How the interface is found from which peers are reached.
    pub uplink: UplinkOptions,
    /// The file that tells CNI plugins and Docker about the node's subnet. The status socket is beside it.
    pub subnet_file: PathBuf,
    /// The file of WireGuard's private key; without it `wgkey` beside the subnet file.
    pub wireguard_key_file: Option<PathBuf>,
    /// The rules around the data path. Who keeps them, the network's configuration says.
    pub firewall: FirewallOptions,
    /// Drop packets to addresses of our subnet that no pod has.
    pub blackhole: bool,
    /// Refuse packets between pods of different nodes that would not be encrypted, and networks whose backend does not encrypt.
    pub require_encryption: bool,
    /// Ask peers what the paths to them take; `None` asks nobody.
    pub probe: Option<flannel_probe::Options>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served; `None` for nowhere.
    pub health: Option<SocketAddr>,
    /// Whether `/explain` is served there too, to whoever reaches it: it tells of this host's routes and rules.
    pub health_explain: bool,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self {
            store: StoreOptions::default(),
            network: None,
            node_id: None,
            state_dir: None,
            lease_ttl: Duration::from_secs(24 * 60 * 60),
            renew_margin: Duration::from_secs(60 * 60),
            on_lease_loss: OnLeaseLoss::default(),
            uplink: UplinkOptions::default(),
            subnet_file: "/run/flannel/subnet.env".into(),
            wireguard_key_file: None,
            firewall: FirewallOptions::default(),
            blackhole: false,
            require_encryption: false,
            probe: None,
            health: None,
            health_explain: false,
        }
    }
}

/// Where leases live.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The kind of store: `etcd`, `file`, `kubernetes`, `memory`, or an embedder's own.
    pub name: String,
    /// What the store is opened with, such as a folder; empty where the name says all.
    pub location: String,
    /// How to reach etcd.
    #[cfg(feature = "etcd")]
    pub etcd: EtcdConfig,
    /// How to use Kubernetes.
    #[cfg(feature = "kubernetes")]
    pub kubernetes: KubernetesConfig,
}

/// How to use Kubernetes as a store. The defaults are flanneld's.
#[cfg(feature = "kubernetes")]
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// The API server, if it is not the one of the kubeconfig or of the cluster that this pod is in.
    pub api_url: Option<String>,
    /// A kubeconfig; without it and the URL, what every pod has is used.
    pub kubeconfig: Option<PathBuf>,
    /// What the annotations of nodes begin with.
    pub annotation_prefix: String,
    /// Where the network's configuration is.
    pub network: NetworkSource,
    /// The Node that this process runs on; without it, the variables NODE_NAME, POD_NAME and POD_NAMESPACE say it.
    pub node: Option<NodeName>,
    /// Where the last state is kept, for a start while the API server is away.
    pub state_file: Option<PathBuf>,
    /// Whether the node's condition NetworkUnavailable is kept.
    pub keep_condition: bool,
}

#[cfg(feature = "kubernetes")]
impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            api_url: None,
            kubeconfig: None,
            annotation_prefix: "flannel.alpha.coreos.com".into(),
            network: NetworkSource::File("/etc/kube-flannel/net-conf.json".into()),
            node: None,
            state_file: Some("/run/flannel/kubernetes.json".into()),
            keep_condition: true,
        }
    }
}

impl StoreOptions {
    /// The folder at `path`, shared by all nodes of this machine.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::new("file", path.into().to_string_lossy().into_owned())
    }

    /// The memory of this process, for a node on its own.
    pub fn memory() -> Self {
        Self::new("memory", String::new())
    }

    /// The Kubernetes cluster that this node is of.
    #[cfg(feature = "kubernetes")]
    pub fn kubernetes(kubernetes: KubernetesConfig) -> Self {
        Self { kubernetes, ..Self::new("kubernetes", String::new()) }
    }

    /// An etcd cluster.
    #[cfg(feature = "etcd")]
    pub fn etcd(etcd: EtcdConfig) -> Self {
        Self { etcd, ..Self::default() }
    }

    fn new(name: &str, location: String) -> Self {
        Self {
            name: name.into(),
            location,
            #[cfg(feature = "etcd")]
            etcd: EtcdConfig::default(),
            #[cfg(feature = "kubernetes")]
            kubernetes: KubernetesConfig::default(),
        }
    }
}

impl Default for StoreOptions {
    /// etcd where flanneld looks for it.
    fn default() -> Self {
        Self::new("etcd", String::new())
    }
}

impl fmt::Display for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.location.as_str()) {
            // Some endpoints have a password in them.
            #[cfg(feature = "etcd")]
            ("etcd", _) => {
                let (endpoints, prefix) = (self.etcd.endpoints.len(), &self.etcd.prefix);
                write!(f, "etcd, {endpoints} endpoints, under {prefix}")
            }
            (name, "") => f.write_str(name),
            (name, location) => write!(f, "{name}:{location}"),
        }
    }
}
