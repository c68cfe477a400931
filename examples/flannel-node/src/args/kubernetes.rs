//! flanneld's flags for leases in Kubernetes.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use flannel_daemon::KubernetesConfig;
use flannel_store::NetworkSource;

use super::values;

/// flanneld's flags for leases in Kubernetes. NODE_NAME names the Node, or POD_NAME and POD_NAMESPACE the pod that runs on it.
#[derive(Args, Debug)]
pub(crate) struct KubernetesArgs {
    /// Keep leases in Kubernetes: each node's subnet is its spec.podCIDRs, and peers know each other by annotations.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) kube_subnet_mgr: bool,

    /// With Kubernetes: the URL of the API server. Without it, the kubeconfig's; without that, the one of this pod's cluster.
    #[arg(long, value_name = "URL")]
    pub(crate) kube_api_url: Option<String>,

    /// With Kubernetes: what the annotations of nodes begin with.
    #[arg(long, value_name = "PREFIX", default_value = "flannel.alpha.coreos.com")]
    pub(crate) kube_annotation_prefix: String,

    /// With Kubernetes: a kubeconfig that says how to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig_file: Option<PathBuf>,

    /// With Kubernetes: the file with the network's configuration, flannel's JSON.
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/net-conf.json")]
    pub(crate) net_config_path: PathBuf,

    /// With Kubernetes: the ConfigMap whose net-conf.json is the network's configuration, instead of a file. Changes are seen at once.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = config_map, conflicts_with = "net_config_path")]
    pub(crate) net_config_map: Option<NetworkSource>,
}

impl KubernetesArgs {
    /// How to use Kubernetes. The last state is kept beside the subnet file, which every pod of flannel's has on the host.
    pub(crate) fn config(&self, subnet_file: &Path) -> KubernetesConfig {
        let file = || NetworkSource::File(self.net_config_path.clone());
        KubernetesConfig {
            api_url: self.kube_api_url.clone(),
            kubeconfig: self.kubeconfig_file.clone(),
            annotation_prefix: self.kube_annotation_prefix.clone(),
            network: self.net_config_map.clone().unwrap_or_else(file),
            state_file: Some(subnet_file.with_file_name("kubernetes.json")),
            ..KubernetesConfig::default()
        }
    }
}

fn config_map(text: &str) -> Result<NetworkSource, String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(NetworkSource::ConfigMap { namespace: namespace.into(), name: name.into() })
        }
        _ => Err("expected a namespace and a name such as kube-flannel/kube-flannel-cfg".into()),
    }
}
