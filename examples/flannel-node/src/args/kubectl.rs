//! What to look at in a Kubernetes cluster.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use flannel_daemon::kubectl::{BenchOptions, ClusterAccess, TargetName};
use flannel_kube::{ClientConfig, ConfigError};

use super::values;

/// What to look at.
#[derive(Debug, Subcommand)]
pub(crate) enum KubectlCommand {
    /// Print a line for each node: subnet, address, backend, MTU, readiness and problems.
    Status {
        /// What the annotations of nodes begin with.
        #[arg(long, value_name = "PREFIX", default_value = "flannel.alpha.coreos.com")]
        kube_annotation_prefix: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Let the nodes at both ends follow the way between two pods, and name what is broken first.
    Explain {
        /// A pod, such as web-1 or prod/web-1.
        source: TargetName,
        /// A pod, or a service such as svc/web: then the pods behind it.
        destination: TargetName,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Measure throughput and round trips between two nodes, with a pod on each that is deleted afterwards.
    Bench(BenchArgs),
}

/// Which cluster, and where in it things are.
#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    /// The kubeconfig; without it, that of KUBECONFIG, and then ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context, if not the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// The namespace of pods and services, if not the context's.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    /// The namespace of flannel's DaemonSet.
    #[arg(long, value_name = "NAME", default_value = "kube-flannel")]
    flannel_namespace: String,
}

/// Between which nodes, and how.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// The node from which packets are sent.
    from: String,

    /// The node to which they are sent.
    to: String,

    /// For how long throughput and round trips are looked at, each.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = values::number(1..=30_u64))]
    seconds: u64,

    /// Use the nodes' networks, to compare with the pod network.
    #[arg(long)]
    host_network: bool,

    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// One end of a measurement.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct BenchPeerArgs {
    /// Answer on this port.
    #[arg(long, value_name = "PORT", conflicts_with = "measure")]
    pub(crate) answer: Option<u16>,

    /// Measure the path to who answers there, and print JSON.
    #[arg(long, value_name = "IP:PORT", required_unless_present = "answer")]
    pub(crate) measure: Option<std::net::SocketAddr>,

    /// For how long.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) seconds: u64,
}

impl ClusterArgs {
    pub(crate) fn access(&self) -> Result<ClusterAccess, ConfigError> {
        let variable = |name: &str| std::env::var(name).ok();
        let (file, context) = (self.kubeconfig.as_deref(), self.context.as_deref());
        let config = ClientConfig::as_kubectl(file, context, variable)?;
        Ok(ClusterAccess::new(config, &self.flannel_namespace, self.namespace.as_deref()))
    }
}

impl BenchArgs {
    pub(crate) fn options(&self) -> BenchOptions {
        BenchOptions {
            from: self.from.clone(),
            to: self.to.clone(),
            length: Duration::from_secs(self.seconds),
            host_network: self.host_network,
        }
    }
}
