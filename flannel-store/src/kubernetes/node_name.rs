//! Which Node this process runs on.

use flannel_core::NodeId;
use flannel_kube::{Client, RequestError, Resource};
use serde::Deserialize;

/// How the Node that this process runs on is found.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NodeName {
    /// It is called so.
    Node(NodeId),
    /// It is the one of this pod.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
}

/// Why the Node is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeNameError {
    /// Neither of the two was given.
    #[error(
        "set NODE_NAME to the name of the Node, or POD_NAME and POD_NAMESPACE to this pod's, as the downward API does"
    )]
    Missing,
    /// The pod says nothing of a Node.
    #[error("the pod {namespace}/{name} names no Node")]
    Nowhere {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// The pod cannot be read.
    #[error("cannot find out on which Node this pod runs")]
    Request(#[source] Box<RequestError>),
}

impl NodeName {
    /// As flanneld: `NODE_NAME`, or else `POD_NAME` and `POD_NAMESPACE`.
    ///
    /// # Errors
    ///
    /// [`NodeNameError::Missing`].
    pub fn of_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, NodeNameError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        if let Some(node) = set("NODE_NAME") {
            return NodeId::new(node).map(Self::Node).map_err(|_| NodeNameError::Missing);
        }
        match (set("POD_NAMESPACE"), set("POD_NAME")) {
            (Some(namespace), Some(name)) => Ok(Self::Pod { namespace, name }),
            _ => Err(NodeNameError::Missing),
        }
    }

    /// The Node's name, which takes a request if only the pod is known.
    ///
    /// # Errors
    ///
    /// [`NodeNameError::Nowhere`] or [`NodeNameError::Request`].
    pub async fn find(&self, client: &Client) -> Result<NodeId, NodeNameError> {
        let (namespace, name) = match self {
            Self::Node(node) => return Ok(node.clone()),
            Self::Pod { namespace, name } => (namespace, name),
        };
        let pod = client.get(&Resource::namespaced("pods", namespace), name).await;
        let pod = pod.map_err(|error| NodeNameError::Request(error.into()))?;
        let node = serde_json::from_slice::<PodView>(&pod).ok();
        let node = node.and_then(|pod| NodeId::new(pod.spec.node_name).ok());
        let nowhere =
            || NodeNameError::Nowhere { namespace: namespace.clone(), name: name.clone() };
        node.ok_or_else(nowhere)
    }
}

#[derive(Deserialize)]
struct PodView {
    spec: PodSpecView,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpecView {
    #[serde(default)]
    node_name: String,
}
