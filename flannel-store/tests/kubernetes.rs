//! Leases in Kubernetes, against an API server with faults on demand.

#[path = "kubernetes/contract.rs"]
mod contract;
#[path = "kubernetes/outages.rs"]
mod outages;
#[path = "kubernetes/told.rs"]
mod told;

use std::{collections::BTreeMap, fs, time::Duration};

use flannel_core::{Lease, LeaseAttrs, LeaseEvent, Notice, Store, StoreError, Subnet, SubnetLease};
use flannel_kube::{Client, ClientConfig};
use flannel_store::{KubernetesOptions, KubernetesStore, NetworkSource};
use flannel_testbed::{
    kube::{FakeApiServer, Refusal},
    soon,
};
use futures::{StreamExt, stream::BoxStream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// An API server, and a folder for each node's state.
struct Cluster {
    server: FakeApiServer,
    folder: TempDir,
}

const NETWORK: &str = r#"{"Network":"10.3.0.0/16"}"#;
const PREFIX: &str = "flannel.alpha.coreos.com";

impl Cluster {
    fn new(config: &str) -> Self {
        let cluster =
            Self { server: FakeApiServer::on_loopback(), folder: TempDir::new().unwrap() };
        fs::write(cluster.folder.path().join("net-conf.json"), config).unwrap();
        cluster
    }

    /// With nodes called `n1`, `n2` and so on, whose blocks have these numbers.
    fn of_nodes(count: u8) -> Self {
        let cluster = Self::new(NETWORK);
        for n in 1..=count {
            cluster.server.add_node(&format!("n{n}"), &[&format!("10.3.{n}.0/24")], true);
        }
        cluster
    }

    fn options(&self, node: &str) -> KubernetesOptions {
        KubernetesOptions {
            node: node.parse().unwrap(),
            annotation_prefix: PREFIX.into(),
            network: NetworkSource::File(self.folder.path().join("net-conf.json")),
            state_file: Some(self.folder.path().join(format!("{node}.json"))),
        }
    }

    fn store_with(&self, options: KubernetesOptions) -> KubernetesStore {
        let config = ClientConfig::anonymous(self.server.url().parse().unwrap());
        KubernetesStore::new(Client::new(config), options).unwrap()
    }

    fn store(&self, node: &str) -> KubernetesStore {
        self.store_with(self.options(node))
    }

    fn annotate(&self, node: &str, annotations: &Value) {
        let annotations: BTreeMap<String, &Value> = annotations
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (format!("{PREFIX}/{name}"), value))
            .collect();
        self.server.patch("nodes", node, &json!({"metadata": {"annotations": annotations}}));
    }

    fn annotation(&self, node: &str, name: &str) -> Option<String> {
        self.server.annotation(node, &format!("{PREFIX}/{name}"))
    }
}

fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: Some([192, 0, 2, last].into()),
        backend_type: "host-gw".into(),
        ..LeaseAttrs::default()
    }
}

fn lease(n: u8, last: u8) -> Lease {
    let subnet: Subnet = format!("10.3.{n}.0-24").parse().unwrap();
    Lease::new(subnet, at(last)).held_by(format!("n{n}").parse().unwrap())
}

async fn acquire(store: &KubernetesStore, last: u8) -> Box<dyn SubnetLease> {
    soon(store.acquire(&at(last))).await.unwrap()
}

type Watch = BoxStream<'static, Result<LeaseEvent, StoreError>>;

async fn next(watch: &mut Watch) -> LeaseEvent {
    let item = async {
        loop {
            // While the API server is away, that is told too.
            if let Ok(event) = watch.next().await.expect("a watch never ends") {
                return event;
            }
        }
    };
    soon(item).await
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(40), wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn what_is_written_is_flannels_and_nothing_else_changes() {
    let cluster = Cluster::of_nodes(1);
    let before = cluster.server.get("nodes", "n1").unwrap();
    let text = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    let attrs: LeaseAttrs = text.parse().unwrap();
    let store = cluster.store("n1");
    let lease = soon(store.acquire(&attrs)).await.unwrap();
    assert_eq!((lease.lease().subnet.to_string().as_str(), lease.ttl()), ("10.3.1.0-24", None));
    let written = [
        ("backend-data", r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#),
        ("backend-type", "vxlan"),
        ("kube-subnet-manager", "true"),
        ("public-ip", "192.0.2.1"),
    ];
    let mut after = cluster.server.get("nodes", "n1").unwrap();
    let annotations = after["metadata"]["annotations"].as_object_mut().unwrap();
    for (name, value) in written {
        assert_eq!(annotations.remove(&format!("{PREFIX}/{name}")), Some(json!(value)));
    }
    after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
    assert_eq!(after, before);
    // A restart finds it, and writes nothing.
    cluster.server.take_requests();
    let again = cluster.store("n1");
    assert_eq!(again.previous().await.unwrap().unwrap().attrs, attrs);
    soon(again.acquire(&attrs)).await.unwrap();
    let asked = cluster.server.take_requests();
    assert!(asked.iter().all(|it| it.method == "GET"), "{asked:?}");
}

#[tokio::test]
async fn a_node_waits_for_its_block_and_says_so() {
    let cluster = Cluster::new(NETWORK);
    cluster.server.add_node("n1", &[], true);
    let store = cluster.store("n1");
    let error = soon(store.acquire(&at(1))).await.unwrap_err();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.is_retryable() && text.contains("n1 has no spec.podCIDR yet"), "{error}: {text}");
    let attrs = at(1);
    let acquiring = store.acquire(&attrs);
    let late = async {
        sleep(Duration::from_secs(1)).await;
        let spec = json!({"podCIDR": "10.3.7.0/24", "podCIDRs": ["10.3.7.0/24"]});
        cluster.server.patch("nodes", "n1", &json!({ "spec": spec }));
    };
    let (acquired, ()) = soon(async { tokio::join!(acquiring, late) }).await;
    assert_eq!(acquired.unwrap().lease().subnet.to_string(), "10.3.7.0-24");
    cluster.server.add_node("n2", &["172.16.0.0/24"], true);
    let error = soon(cluster.store("n2").acquire(&at(2))).await.unwrap_err();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        text.contains("172.16.0.0/24 of the node n2 is outside of the network 10.3.0.0/16"),
        "{text}"
    );
}

#[tokio::test]
async fn peers_come_change_lose_what_makes_them_peers_and_come_anew() {
    let cluster = Cluster::of_nodes(3);
    let mut watch = cluster.store("n1").watch();
    assert_eq!(next(&mut watch).await, LeaseEvent::Reset(Vec::new()));
    let flannels = json!({
        "kube-subnet-manager": "true", "backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.2",
    });
    cluster.annotate("n2", &flannels);
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease(2, 2)));
    cluster.annotate("n2", &json!({"public-ip": "192.0.2.22"}));
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease(2, 22)));
    let gone = LeaseEvent::Remove(lease(2, 2).subnet);
    cluster.annotate("n2", &json!({"kube-subnet-manager": null}));
    assert_eq!(next(&mut watch).await, gone);
    cluster.annotate("n2", &flannels);
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease(2, 2)));
    // Another node of the same name, with another block.
    cluster.server.delete("nodes", "n2");
    assert_eq!(next(&mut watch).await, gone);
    cluster.server.add_node("n2", &["10.3.9.0/24"], true);
    cluster.annotate("n2", &flannels);
    let mut moved = lease(2, 2);
    moved.subnet = "10.3.9.0-24".parse().unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(moved));
}

#[tokio::test]
async fn a_peer_that_gets_another_family_is_not_there_twice() {
    let cluster =
        Cluster::new(r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48"}"#);
    cluster.server.add_node("n1", &["10.3.1.0/24"], false);
    cluster.server.add_node("n2", &["10.3.2.0/24", "fd00:3:0:2::/64"], false);
    let mut watch = cluster.store("n1").watch();
    next(&mut watch).await;
    let flannels = json!({
        "kube-subnet-manager": "true", "backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.2",
    });
    cluster.annotate("n2", &flannels);
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease(2, 2)));
    cluster.annotate("n2", &json!({"backend-v6-data": "null", "public-ipv6": "2001:db8::2"}));
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(lease(2, 2).subnet));
    let LeaseEvent::Upsert(dual) = next(&mut watch).await else { panic!() };
    assert_eq!(dual.subnet.to_string(), "10.3.2.0-24&fd00:3:0:2::-64");
}

#[tokio::test]
async fn an_operators_addresses_are_published_and_seen_as_ours() {
    let cluster = Cluster::of_nodes(1);
    cluster.annotate(
        "n1",
        &json!({"public-ip-overwrite": "198.51.100.7", "node-public-ip": "192.0.2.77"}),
    );
    let store = cluster.store("n1");
    assert_eq!(store.node_addresses().await.unwrap().0, Some([192, 0, 2, 77].into()));
    let mut held = acquire(&store, 1).await;
    assert_eq!(cluster.annotation("n1", "public-ip").as_deref(), Some("198.51.100.7"));
    let mut watch = store.watch();
    assert_eq!(next(&mut watch).await, LeaseEvent::reset(vec![lease(1, 1)]), "as published");
    // It goes away: what peers read has to be written again.
    cluster.annotate("n1", &json!({"public-ip-overwrite": null}));
    let LeaseEvent::Upsert(seen) = next(&mut watch).await else { panic!() };
    assert_ne!(*seen, lease(1, 1));
    soon(held.renew()).await.unwrap();
    assert_eq!(cluster.annotation("n1", "public-ip").as_deref(), Some("192.0.2.1"));
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease(1, 1)));
}

#[tokio::test]
async fn a_lease_is_lost_with_its_node_and_renewing_repairs_what_is_written() {
    let cluster = Cluster::of_nodes(1);
    let store = cluster.store("n1");
    let mut held = acquire(&store, 1).await;
    cluster.annotate("n1", &json!({"backend-type": "vxlan", "kube-subnet-manager": null}));
    soon(held.renew()).await.unwrap();
    assert_eq!(cluster.annotation("n1", "backend-type").as_deref(), Some("host-gw"));
    cluster.server.delete("nodes", "n1");
    assert!(matches!(soon(held.renew()).await, Err(StoreError::Revoked { .. })));
    cluster.server.add_node("n1", &["10.3.8.0/24"], true);
    assert!(matches!(soon(held.renew()).await, Err(StoreError::Revoked { .. })));
    assert_eq!(cluster.annotation("n1", "backend-type"), None, "nothing was written");
    assert_eq!(acquire(&store, 1).await.lease().subnet.to_string(), "10.3.8.0-24");
}

#[tokio::test]
async fn a_restart_while_the_api_server_is_away_goes_on_with_the_last_state() {
    let mut cluster = Cluster::of_nodes(3);
    let store = cluster.store("n1");
    let before = acquire(&store, 1).await.lease().clone();
    acquire(&cluster.store("n2"), 2).await;
    let mut watch = store.watch();
    let LeaseEvent::Reset(known) = next(&mut watch).await else { panic!() };
    assert_eq!(known.len(), 2);
    let file = cluster.folder.path().join("n1.json");
    let mut configs = store.watch_config();
    for network in [NETWORK, r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#] {
        fs::write(cluster.folder.path().join("net-conf.json"), network).unwrap();
        let is_written = || {
            let state = fs::read(&file).unwrap_or_default();
            let state: Value = serde_json::from_slice(&state).unwrap_or_default();
            state["network"] == network
        };
        let saving = async {
            tokio::select! {
                _ = async { loop { watch.next().await; } } => {}
                _ = async { loop { configs.next().await; } } => {}
                () = until("the state is written", is_written) => {}
            }
        };
        soon(saving).await;
    }
    drop((configs, watch, store));
    cluster.server.stop();
    let store = cluster.store("n1");
    assert_eq!(store.previous().await.unwrap(), Some(before.clone()));
    let held = acquire(&store, 1).await;
    assert_eq!(*held.lease(), before);
    let mut watch = store.watch();
    assert_eq!(next(&mut watch).await, LeaseEvent::reset(known));
    assert!(soon(watch.next()).await.unwrap().is_err(), "and it is said");
    cluster.server.resume().unwrap();
    cluster.server.delete("nodes", "n2");
    let gone = async {
        loop {
            match next(&mut watch).await {
                LeaseEvent::Reset(leases) if leases == [before.clone().into()] => break,
                LeaseEvent::Remove(subnet) if subnet == lease(2, 2).subnet => break,
                _ => {}
            }
        }
    };
    soon(gone).await;
    // Another node has no use for it.
    cluster.server.stop();
    let mut options = cluster.options("n3");
    options.state_file = Some(file);
    let error = soon(cluster.store_with(options).acquire(&at(3))).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_refusal_after_a_restart_of_the_api_server_is_retried() {
    let cluster = Cluster::of_nodes(1);
    let store = cluster.store("n1");
    let words = "nodes \"n1\" is forbidden: User \"system:serviceaccount:kube-flannel:flannel\" cannot get resource";
    let refusal = Refusal::new(403, "Forbidden", words);
    cluster.server.behave(|it| it.refusal = Some((refusal, 1)));
    let error = soon(store.acquire(&at(1))).await.unwrap_err();
    assert!(error.is_retryable());
    acquire(&store, 1).await;
}

#[tokio::test]
async fn the_config_is_read_from_a_config_map_and_followed() {
    let cluster = Cluster::of_nodes(1);
    let map = |network: &str| json!({"metadata": {"name": "kube-flannel-cfg"}, "data": {"net-conf.json": network}});
    let key = "kube-flannel/kube-flannel-cfg";
    let mut options = cluster.options("n1");
    let (namespace, name) = ("kube-flannel".into(), "kube-flannel-cfg".into());
    options.network = NetworkSource::ConfigMap { namespace, name };
    let store = cluster.store_with(options);
    let missing = soon(store.config()).await.unwrap_err();
    assert!(matches!(missing, StoreError::ConfigMissing { .. }), "{missing:?}");
    cluster.server.put("configmaps", key, map(NETWORK));
    assert_eq!(soon(store.config()).await.unwrap(), NETWORK.parse().unwrap());
    let mut configs = store.watch_config();
    assert_eq!(soon(configs.next()).await.unwrap().unwrap(), NETWORK.parse().unwrap());
    let enlarged = r#"{"Network":"10.0.0.0/12"}"#;
    cluster.server.put("configmaps", key, map(enlarged));
    assert_eq!(soon(configs.next()).await.unwrap().unwrap(), enlarged.parse().unwrap());
    cluster.server.delete("configmaps", key);
    assert!(matches!(soon(configs.next()).await.unwrap(), Err(StoreError::ConfigMissing { .. })));
}
