//! The store of a Kubernetes cluster.

use std::{
    error::Error,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use flannel_core::{NodeId, Notice, Store, StoreError};
use flannel_kube::{Client, ClientConfig};
use flannel_store::{KubernetesOptions, KubernetesStore, NetworkSource, NodeName, NodeNameError};
use futures::future::{self, BoxFuture, FutureExt};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use super::{OpenStore, StorePlan, StoreRequest};
use crate::{InvalidOptions, KubernetesConfig, Orchestrator, error::chain, parent_folder};

pub(super) fn plan(request: &StoreRequest<'_>) -> Result<StorePlan, InvalidOptions> {
    if request.network.is_some() {
        return Err(InvalidOptions::new(
            "with leases in Kubernetes, --network has no place: the network's configuration is the file of --net-config-path",
        ));
    }
    let config = request.options.kubernetes.clone();
    KubernetesStore::check_prefix(&config.annotation_prefix).map_err(InvalidOptions::new)?;
    let client = ClientConfig::find(config.api_url.as_deref(), config.kubeconfig.as_deref())
        .map_err(InvalidOptions::new)?;
    let node = match &config.node {
        Some(node) => node.clone(),
        None => NodeName::of_environment(|name| std::env::var(name).ok())
            .map_err(InvalidOptions::new)?,
    };
    let identity = format!("{} {}", client.server, config.annotation_prefix);
    let mut files = client.files();
    if let NetworkSource::File(path) = &config.network {
        files.push(path.clone());
    }
    let written = config.state_file.as_deref().and_then(parent_folder);
    let is_patient = request.create;
    let client = Client::new(client);
    let open = async move {
        let node = match is_patient {
            true => find(&node, &client).await?,
            false => node.find(&client).await?,
        };
        open(client, node, config)
    };
    let plan =
        files.into_iter().fold(StorePlan::new(open).with_identity(identity), StorePlan::reads);
    Ok(written.into_iter().fold(plan, StorePlan::writes))
}

/// Finds out which Node this is, for as long as that takes.
async fn find(node: &NodeName, client: &Client) -> Result<NodeId, NodeNameError> {
    let mut said = None;
    loop {
        match node.find(client).await {
            Err(error @ NodeNameError::Request(_)) => {
                let text = chain(&error);
                if said.as_ref() != Some(&text) {
                    warn!("{text}; retrying, NODE_NAME makes it unnecessary");
                    said = Some(text);
                }
                sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

fn open(
    client: Client,
    node: NodeId,
    config: KubernetesConfig,
) -> Result<OpenStore, Box<dyn Error + Send + Sync>> {
    let options = KubernetesOptions {
        node,
        annotation_prefix: config.annotation_prefix,
        network: config.network,
        state_file: config.state_file,
    };
    let store = KubernetesStore::new(client, options)?;
    let cluster = Cluster { store, keep_condition: config.keep_condition };
    Ok(OpenStore::Orchestrator(Box::new(cluster)))
}

/// A cluster whose nodes' annotations are the leases.
#[derive(Debug)]
struct Cluster {
    store: KubernetesStore,
    /// Whether the node's condition NetworkUnavailable is kept.
    keep_condition: bool,
}

#[async_trait]
impl Orchestrator for Cluster {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    fn node(&self) -> NodeId {
        self.store.node().clone()
    }

    async fn node_addresses(&self) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), StoreError> {
        self.store.node_addresses().await
    }

    fn show(&self, notices: watch::Receiver<Vec<Notice>>) -> BoxFuture<'static, ()> {
        self.store.events().keep(notices).boxed()
    }

    fn heed(&self, ready: watch::Receiver<bool>) -> BoxFuture<'static, ()> {
        match self.keep_condition {
            true => self.store.condition().keep(ready).boxed(),
            false => future::ready(()).boxed(),
        }
    }
}

const PAUSE: Duration = Duration::from_secs(2);
