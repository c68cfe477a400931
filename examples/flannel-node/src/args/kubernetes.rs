//! flanneld's flags for leases in Kubernetes.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::values;

/// flanneld's flags for leases in Kubernetes: known, so that a mistake is told from a flag that needs another store.
#[derive(Args, Debug)]
pub(crate) struct KubernetesArgs {
    /// Keep leases in Kubernetes. This program cannot do that yet: use etcd or --store.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) kube_subnet_mgr: bool,

    /// With Kubernetes only: the API server.
    #[arg(long, value_name = "URL")]
    pub(crate) kube_api_url: Option<String>,

    /// With Kubernetes only: what annotations begin with.
    #[arg(long, value_name = "PREFIX", default_value = "flannel.alpha.coreos.com")]
    pub(crate) kube_annotation_prefix: String,

    /// With Kubernetes only: how to reach the API server.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig_file: Option<PathBuf>,

    /// With Kubernetes only: the network's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/net-conf.json")]
    pub(crate) net_config_path: PathBuf,

    /// With Kubernetes only: tell the node's condition.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(crate) set_node_network_unavailable: bool,
}
