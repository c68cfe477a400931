//! Leases in a Kubernetes cluster: the cluster gives each node its block of addresses, and nodes tell about themselves in annotations.

mod annotations;
mod condition;
mod events;
mod held_node;
mod network_source;
mod node_leases;
mod node_name;
mod state_file;
mod watch_leases;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use flannel_core::{
    Lease, LeaseAttrs, LeaseEvent, NetworkConfig, NodeId, Store, StoreError, Subnet, SubnetLease,
};
use flannel_kube::{Client, NodeView, Projection, RequestError, Resource};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tracing::warn;

use annotations::AnnotationNames;
use held_node::HeldNode;
use node_leases::{Families, LeaseView, NodeProjection, blocks};
use state_file::{LastState, StateFile};

pub use annotations::InvalidAnnotationPrefix;
pub use condition::NetworkCondition;
pub use events::NodeEvents;
pub use network_source::NetworkSource;
pub use node_name::{NodeName, NodeNameError};

/// A store that keeps leases as flannel's Kubernetes subnet manager does: the subnet of a node is its `spec.podCIDRs`, and what peers
/// have to know is in its annotations.
///
/// The cluster's controllers choose the subnets, so that [`acquire`](Store::acquire) waits for one and never takes any; a lease does not
/// expire. It needs the rights to `get`, `list` and `watch` nodes and to `patch` `nodes/status`.
#[derive(Clone, Debug)]
pub struct KubernetesStore {
    shared: Arc<Shared>,
}

/// What a [`KubernetesStore`] is made of.
#[derive(Clone, Debug)]
pub struct KubernetesOptions {
    /// The Node that this process runs on.
    pub node: NodeId,
    /// What the annotations begin with: `flannel.alpha.coreos.com` for flannel's.
    pub annotation_prefix: String,
    /// Where the network's configuration is.
    pub network: NetworkSource,
    /// Where the last state is kept, for a start while the API server is away; `None` for nowhere.
    pub state_file: Option<PathBuf>,
}

pub(crate) struct Shared {
    client: Client,
    node: NodeId,
    names: AnnotationNames,
    network: NetworkSource,
    state_file: Option<StateFile>,
    /// What this node published last.
    published: Mutex<Option<LeaseAttrs>>,
    /// The operator's addresses that are none, as far as they were told.
    unusable: Mutex<Vec<(String, String)>>,
    /// Another network configuration was seen than is in the last state.
    config_changed: Notify,
}

/// Why the cluster has given this node no subnet.
#[derive(Debug, thiserror::Error)]
enum NoSubnet {
    #[error(
        "the node {node} has no spec.podCIDR yet: the controller-manager gives it one, with --allocate-node-cidrs and \
         --cluster-cidr, as long as that has room"
    )]
    NotAssigned { node: NodeId },
    #[error("the podCIDR {subnet} of the node {node} has no family that the network config has")]
    OtherFamily { node: NodeId, subnet: Subnet },
    #[error(
        "the podCIDR {block} of the node {node} is outside of the network {network} of the network config: it has to be the \
         cluster's --cluster-cidr, or a larger one"
    )]
    Outside { node: NodeId, block: String, network: String },
}

impl KubernetesStore {
    /// A store on `client`. Nothing is asked for yet.
    ///
    /// # Errors
    ///
    /// [`InvalidAnnotationPrefix`].
    pub fn new(
        client: Client,
        options: KubernetesOptions,
    ) -> Result<Self, InvalidAnnotationPrefix> {
        let KubernetesOptions { node, annotation_prefix, network, state_file } = options;
        let shared = Shared {
            client,
            node,
            names: AnnotationNames::new(&annotation_prefix)?,
            network,
            state_file: state_file.map(StateFile),
            published: Mutex::default(),
            unusable: Mutex::default(),
            config_changed: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether annotations can begin with this.
    ///
    /// # Errors
    ///
    /// [`InvalidAnnotationPrefix`].
    pub fn check_prefix(prefix: &str) -> Result<(), InvalidAnnotationPrefix> {
        AnnotationNames::new(prefix).map(drop)
    }

    /// The whole name of an annotation, such as `public-ip`, of those that begin with `prefix`.
    ///
    /// # Errors
    ///
    /// [`InvalidAnnotationPrefix`].
    pub fn annotation(prefix: &str, suffix: &str) -> Result<String, InvalidAnnotationPrefix> {
        AnnotationNames::new(prefix).map(|names| names.name(suffix))
    }

    /// The Node that this store is of.
    pub fn node(&self) -> &NodeId {
        &self.shared.node
    }

    /// The addresses that an operator's annotations say that this node has (`node-public-ip`, `node-public-ipv6`): they go before those
    /// of its options.
    ///
    /// # Errors
    ///
    /// What keeps the API server from answering, if it is not known from before either.
    pub async fn node_addresses(&self) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), StoreError> {
        let shared = &self.shared;
        match shared.own_node().await {
            Ok(json) => {
                let node = shared.view(&json)?;
                Ok(shared.names.node_addresses(&node.metadata.annotations))
            }
            Err(error) => match shared.last_state().filter(|_| error.is_unreachable()) {
                Some(last) => Ok(last.addresses),
                None => Err(shared.unavailable_node("read", error)),
            },
        }
    }

    /// What keeps the node's condition `NetworkUnavailable` true.
    pub fn condition(&self) -> NetworkCondition {
        let Shared { client, node, .. } = &*self.shared;
        NetworkCondition { client: client.clone(), node: node.to_string() }
    }

    /// What keeps the node's events. It needs the rights to `create` and `patch` events; without them it says so once.
    pub fn events(&self) -> NodeEvents {
        let Shared { client, node, .. } = &*self.shared;
        NodeEvents { client: client.clone(), node: node.to_string() }
    }
}

#[async_trait]
impl Store for KubernetesStore {
    async fn config(&self) -> Result<NetworkConfig, StoreError> {
        let shared = &self.shared;
        match shared.network.text(&shared.client).await {
            Ok(text) => shared.network.parse(text.as_deref()),
            Err(error) => {
                let last = shared.last_state().and_then(|last| last.network);
                match last {
                    Some(text) if error.is_retryable() => shared.network.parse(Some(&text)),
                    _ => Err(error),
                }
            }
        }
    }

    async fn previous(&self) -> Result<Option<Lease>, StoreError> {
        let shared = &self.shared;
        match shared.own_node().await {
            Ok(json) => {
                let json = str::from_utf8(&json).unwrap_or_default();
                let projection = NodeProjection { names: shared.names.clone() };
                let node = projection
                    .project(&shared.node.as_str().into(), json)
                    .map_err(|error| shared.odd(error))?;
                let families = Families::of(&self.config().await?);
                let view = LeaseView { own: shared.node.as_str(), published: None, families };
                Ok(view.lease(shared.node.as_str(), &node).map(Arc::unwrap_or_clone))
            }
            Err(error) if error.is_unreachable() && shared.last_state().is_some() => {
                Ok(shared.last_lease())
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(shared.unavailable_node("read", error)),
        }
    }

    async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Box<dyn SubnetLease>, StoreError> {
        let shared = &self.shared;
        let config = self.config().await?;
        let until = Instant::now() + WAIT_FOR_BLOCK;
        let subnet = loop {
            let json = match shared.own_node().await {
                Ok(json) => json,
                Err(error) => {
                    let last = shared.last_lease().filter(|_| error.is_unreachable());
                    let Some(last) = last else {
                        return Err(shared.unavailable_node("read", error));
                    };
                    warn!(
                        subnet = %last.subnet,
                        "the API server is away, going on with what was known before: {error}: {}",
                        error.reason
                    );
                    shared.publishes(attrs);
                    return Ok(Box::new(HeldNode::new(
                        Arc::clone(shared),
                        last.subnet,
                        config,
                        attrs,
                    )));
                }
            };
            match shared.subnet(&shared.view(&json)?, &config) {
                Ok(subnet) => break subnet,
                Err(NoSubnet::NotAssigned { .. }) if Instant::now() < until => {
                    sleep(LOOK_EVERY).await;
                }
                Err(reason) => {
                    return Err(StoreError::Unavailable {
                        operation: "get a subnet of the cluster".into(),
                        source: reason.into(),
                    });
                }
            }
        };
        let mut held = HeldNode::new(Arc::clone(shared), subnet, config, attrs);
        held.renew().await?;
        Ok(Box::new(held))
    }

    fn watch(&self) -> BoxStream<'static, Result<LeaseEvent, StoreError>> {
        watch_leases::watch(self.clone())
    }

    fn watch_config(&self) -> BoxStream<'static, Result<NetworkConfig, StoreError>> {
        let shared = Arc::clone(&self.shared);
        let configs = shared.network.watch(shared.client.clone());
        // The next start may have to do with the last state.
        configs.inspect_ok(move |_| shared.config_changed.notify_one()).boxed()
    }
}

/// Waits until then, and for ever if there is no such moment.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    async fn own_node(&self) -> Result<Vec<u8>, RequestError> {
        self.client.get(&Resource::cluster("nodes"), self.node.as_str()).await
    }

    fn view<'a>(&self, json: &'a [u8]) -> Result<NodeView<'a>, StoreError> {
        serde_json::from_slice(json).map_err(|error| self.odd(error))
    }

    /// The subnet that the cluster has given this node.
    fn subnet(&self, node: &NodeView<'_>, config: &NetworkConfig) -> Result<Subnet, NoSubnet> {
        let id = || self.node.clone();
        let all = blocks(&node.spec).ok_or_else(|| NoSubnet::NotAssigned { node: id() })?;
        let subnet = Families::of(config)
            .of_blocks(all)
            .ok_or_else(|| NoSubnet::OtherFamily { node: id(), subnet: all })?;
        let outside =
            |block: String, network: String| NoSubnet::Outside { node: id(), block, network };
        if let (Some(block), Some(range)) = (subnet.ipv4(), config.ipv4())
            && !block.is_subnet_of(range.network())
        {
            return Err(outside(block.to_string(), range.network().to_string()));
        }
        if let (Some(block), Some(range)) = (subnet.ipv6(), config.ipv6())
            && !block.is_subnet_of(range.network())
        {
            return Err(outside(block.to_string(), range.network().to_string()));
        }
        Ok(subnet)
    }

    fn last_state(&self) -> Option<LastState> {
        self.state_file.as_ref()?.read(self.node.as_str())
    }

    /// The lease that this node had when the API server answered last.
    fn last_lease(&self) -> Option<Lease> {
        let leases = self.last_state()?.leases;
        let own = leases.into_iter().find(|lease| lease.node.as_ref() == Some(&self.node));
        own.map(Arc::unwrap_or_clone)
    }

    /// Says once which of the operator's addresses are none.
    fn tell_unusable(&self, unusable: Vec<(String, String)>) {
        let mut told = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in unusable.iter().filter(|it| !told.contains(it)) {
            warn!(
                "the node publishes its own address: its annotation {name} is {value:?}, which is no address of that family: correct \
                 or remove it"
            );
        }
        *told = unusable;
    }

    fn publishes(&self, attrs: &LeaseAttrs) {
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = Some(attrs.clone());
    }

    fn published(&self) -> Option<LeaseAttrs> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unavailable_node(&self, verb: &str, error: RequestError) -> StoreError {
        unavailable(format!("{verb} the node {}", self.node), error)
    }

    fn odd(&self, error: serde_json::Error) -> StoreError {
        StoreError::Unavailable {
            operation: format!("read the node {}", self.node),
            source: error.into(),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("client", &self.client)
            .field("node", &self.node)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// A request that failed, as one that waiting may help: also a refusal, since an API server that has just started knows nobody's
/// rights yet, and rights that are missing are given while we wait.
pub(crate) fn unavailable(operation: String, error: RequestError) -> StoreError {
    StoreError::Unavailable { operation, source: error.into() }
}

/// How long a call waits for the node's block of addresses. The controller-manager takes a second or less.
const WAIT_FOR_BLOCK: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
