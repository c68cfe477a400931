//! What `kubectl flannel` does: looks at the nodes of a Kubernetes cluster through its API server, with the rights of whoever runs it.

mod access;
mod bench;
pub mod bench_peer;
mod cluster_status;
mod path_report;
mod target_name;

use flannel_kube::RequestError;
use flannel_store::InvalidAnnotationPrefix;

pub use access::ClusterAccess;
pub use bench::{BenchOptions, bench};
pub use cluster_status::{ClusterStatus, status};
pub use path_report::{PathReport, explain};
pub use target_name::{InvalidTargetName, TargetName};

/// Why the cluster cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubectlError {
    /// A pod of ours does not do what it should.
    #[error("the pod {pod} {reason}")]
    BenchPod {
        /// Which one.
        pod: String,
        /// What is the matter with it.
        reason: String,
    },
    /// An answer is not what was asked for.
    #[error("the answer to {question} cannot be read")]
    Decode {
        /// What was asked for.
        question: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// No pod of flannel runs on a node.
    #[error(
        "no pod of flannel runs on the node {node}: --flannel-namespace says where its DaemonSet is, whose pods have the label \
         app=flannel"
    )]
    NoFlannel {
        /// Which node.
        node: String,
    },
    /// A pod or a service is not the end of a path in the pod network.
    #[error("{target} {reason}")]
    NoPath {
        /// Which one.
        target: String,
        /// Why not.
        reason: String,
    },
    /// No annotations can begin like that.
    #[error(transparent)]
    Prefix(#[from] InvalidAnnotationPrefix),
    /// The API server does not do what was asked.
    #[error(transparent)]
    Request(Box<RequestError>),
    /// Somebody wants to stop.
    #[error("stopped")]
    Stopped,
}

impl From<RequestError> for KubectlError {
    fn from(error: RequestError) -> Self {
        Self::Request(error.into())
    }
}
