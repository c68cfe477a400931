//! A program of an embedder, on a real kernel: a store and a backend of its own, added by name.

use std::{future::pending, net::IpAddr};

use flannel_core::{BackendError, LeaseAttrs, StoreError, testing::FakeBackend};
use flannel_daemon::{
    Backends, Daemon, DaemonOptions, OpenStore, StoreOptions, StorePlan, Stores, UplinkOptions,
    explain::{ExplainOptions, LeaseSource, explain},
};
use flannel_store::{MemoryCluster, NewRecord, Registry};
use flannel_testbed::{Blocks, Testbed, eventually};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_embedder_brings_its_own_store_and_backend() -> anyhow::Result<()> {
    let testbed = Testbed::new(1).await?;
    let (host, folder) = (testbed.host(0), tempfile::tempdir()?);
    let cluster =
        MemoryCluster::new(&r#"{"Network":"10.3.0.0/16","Backend":{"Type":"fake"}}"#.parse()?);
    let registry = cluster.registry();
    let mut attrs = LeaseAttrs { backend_type: "fake".into(), ..LeaseAttrs::default() };
    attrs.public_ip = Some([192, 0, 2, 9].into());
    let peer = NewRecord { value: attrs.to_string(), owner: None, ttl: None };
    registry.create("10.3.9.0-24", &peer).await?;

    let backend = FakeBackend::new(host.ipv4().expect("hosts have IPv4"));
    let backends = Backends::empty().add("fake", move |_| Ok::<_, BackendError>(backend.clone()));
    let stores = Stores::empty().add("table", move |_| {
        let registry = OpenStore::Registry(Box::new(registry.clone()));
        Ok(StorePlan::new(async { Ok::<_, StoreError>(registry) }))
    });
    let store = StoreOptions { name: "table".into(), ..StoreOptions::default() };
    let subnet_file = folder.path().join("subnet.env");
    let options = DaemonOptions {
        store: store.clone(),
        node_id: Some("n1".parse()?),
        subnet_file: subnet_file.clone(),
        uplink: UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() },
        ..DaemonOptions::default()
    };
    let daemon = Daemon::with(options, &stores, backends)?.in_namespace(host.namespace().clone());
    let handle = daemon.handle();
    let node = tokio::spawn(daemon.run_until(pending()));
    eventually(async || handle.readiness().is_ready()).await;

    let status = handle.status_document().await;
    let block = status.lease.expect("a ready node has a lease").subnet.ipv4();
    assert_eq!((status.backend.as_deref(), status.peers.unwrap().len()), (Some("fake"), 1));
    assert!(handle.metrics().to_string().contains("\nflannel_peers 1\n"));
    let pod = host.add_pod(Blocks::new(block, None).unwrap()).await?;
    let (source, destination) = (pod.ip(), IpAddr::from([10, 3, 9, 7]));
    let namespace = Some(host.namespace().clone());
    let leases = LeaseSource::Store(store.into());
    let path = ExplainOptions { source, destination, subnet_file, leases, namespace };
    let explanation = explain(&path, &stores).await?;
    assert_eq!(explanation.broken.expect("nothing routes there").link, "route");
    node.abort();
    Ok(())
}
