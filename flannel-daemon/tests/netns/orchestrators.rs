//! An orchestrator of an embedder: it chooses subnets, names the node, says at which address, and is told how it is.

use std::{
    future::pending,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use async_trait::async_trait;
use flannel_core::{NodeId, Notice, Store, StoreError};
use flannel_daemon::{
    Backends, Daemon, DaemonOptions, OpenStore, Orchestrator, StoreOptions, StorePlan, Stores,
    UplinkOptions,
};
use flannel_store::{LeaseOptions, MemoryCluster, RegistryStore};
use flannel_testbed::{Testbed, eventually};
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

const NETWORK: &str = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"alloc"}}"#;

/// With what the node has told it.
#[derive(Clone, Debug)]
struct Cluster {
    memory: MemoryCluster,
    notices: watch::Sender<Vec<Notice>>,
    is_ready: watch::Sender<bool>,
}

#[async_trait]
impl Orchestrator for Cluster {
    fn store(&self) -> Arc<dyn Store> {
        let registry = self.memory.registry();
        Arc::new(RegistryStore::new(registry, self.node(), LeaseOptions::default()))
    }

    fn node(&self) -> NodeId {
        "machine-7".parse().expect("a name")
    }

    async fn node_addresses(&self) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), StoreError> {
        Ok((Some([192, 0, 2, 77].into()), None))
    }

    fn show(&self, notices: watch::Receiver<Vec<Notice>>) -> BoxFuture<'static, ()> {
        follow(notices, self.notices.clone()).boxed()
    }

    fn heed(&self, ready: watch::Receiver<bool>) -> BoxFuture<'static, ()> {
        follow(ready, self.is_ready.clone()).boxed()
    }
}

async fn follow<T: Clone>(mut told: watch::Receiver<T>, kept: watch::Sender<T>) {
    while told.changed().await.is_ok() {
        kept.send_replace(told.borrow().clone());
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_orchestrator_names_the_node_and_is_told_how_it_is() -> anyhow::Result<()> {
    let testbed = Testbed::new(1).await?;
    let (host, folder) = (testbed.host(0), tempfile::tempdir()?);
    let cluster = Cluster {
        memory: MemoryCluster::new(&NETWORK.parse()?),
        notices: watch::Sender::default(),
        is_ready: watch::Sender::default(),
    };
    let opened = cluster.clone();
    let stores = Stores::empty().add("own", move |_| {
        let cluster = OpenStore::Orchestrator(Box::new(opened.clone()));
        Ok(StorePlan::new(async { Ok::<_, StoreError>(cluster) }))
    });
    let options = DaemonOptions {
        store: StoreOptions { name: "own".into(), ..StoreOptions::default() },
        subnet_file: folder.path().join("subnet.env"),
        uplink: UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() },
        ..DaemonOptions::default()
    };
    let daemon =
        Daemon::with(options, &stores, Backends::default())?.in_namespace(host.namespace().clone());
    let handle = daemon.handle();
    let node = tokio::spawn(daemon.run_until(pending()));
    eventually(async || *cluster.is_ready.borrow()).await;
    let up = |notice: &Notice| notice.reason == "FlannelIsUp";
    eventually(async || cluster.notices.borrow().iter().any(up)).await;
    let status = handle.status_document().await;
    assert_eq!(status.node.map(|it| it.to_string()).as_deref(), Some("machine-7"));
    let lease = status.lease.expect("a ready node has a lease");
    assert_eq!(lease.address, Some([192, 0, 2, 77].into()), "the operators' address");
    node.abort();
    Ok(())
}
