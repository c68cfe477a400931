//! Peers through everything that happens to an API server: whoever is there all the time is never lost, and in the end all is true.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use flannel_core::{Lease, LeaseEvent, Store, Subnet};
use flannel_kube::{Client, ClientConfig, Credentials};
use flannel_store::{KubernetesStore, NetworkSource};
use futures::StreamExt;
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{Cluster, NETWORK, lease};

type Known = BTreeMap<Subnet, Arc<Lease>>;

/// What a watcher knows.
struct Follower {
    known: watch::Receiver<Option<Known>>,
    _task: JoinHandle<()>,
}

impl Follower {
    /// Follows `store`, and fails for good once a peer of `stays` is missing.
    fn of(store: &KubernetesStore, stays: Subnet) -> Self {
        let mut watch = store.watch();
        let (known, receiver) = watch::channel(None);
        let follow = async move {
            while let Some(item) = watch.next().await {
                // That the API server is away is told too.
                let Ok(event) = item else { continue };
                let mut now: Known = known.borrow().clone().unwrap_or_default();
                match event.clone() {
                    LeaseEvent::Remove(subnet) => drop(now.remove(&subnet)),
                    LeaseEvent::Reset(leases) => {
                        now = leases.into_iter().map(|lease| (lease.subnet, lease)).collect();
                    }
                    LeaseEvent::Upsert(lease) => drop(now.insert(lease.subnet, lease)),
                }
                assert!(now.contains_key(&stays), "{event:?} removes who is there all the time");
                known.send_replace(Some(now));
            }
        };
        Self { known: receiver, _task: tokio::spawn(follow) }
    }

    /// Waits until exactly this is known.
    async fn knows(&mut self, truth: &Known) {
        let seen = self.known.wait_for(|known| known.as_ref() == Some(truth));
        let outcome = timeout(Duration::from_secs(60), seen).await.map(|it| it.map(drop));
        assert!(matches!(outcome, Ok(Ok(()))), "{:?} is not {truth:?}", *self.known.borrow());
    }
}

impl Cluster {
    /// A Node that says what flannel's do.
    fn add_peer(&self, n: u8, last: u8) {
        self.server.add_node(&format!("n{n}"), &[&format!("10.3.{n}.0/24")], true);
        self.publish(n, last);
    }

    fn publish(&self, n: u8, last: u8) {
        let annotations = json!({
            "kube-subnet-manager": "true", "backend-type": "host-gw", "backend-data": "null",
            "public-ip": format!("192.0.2.{last}"),
        });
        self.annotate(&format!("n{n}"), &annotations);
    }
}

fn known(leases: impl IntoIterator<Item = Lease>) -> Known {
    leases.into_iter().map(|lease| (lease.subnet, Arc::new(lease))).collect()
}

#[tokio::test]
async fn history_that_is_lost_all_the_time_costs_no_peer() {
    let cluster = Cluster::new(NETWORK);
    cluster.add_peer(2, 2);
    let mut follower = Follower::of(&cluster.store("n1"), lease(2, 2).subnet);
    let mut truth = known([lease(2, 2)]);
    follower.knows(&truth).await;
    for n in 10..30 {
        cluster.server.behave(|it| it.expired_watches = 3);
        cluster.add_peer(n, n);
        cluster.server.compact();
        cluster.server.cut_streams();
        truth.insert(lease(n, n).subnet, lease(n, n).into());
        sleep(Duration::from_millis(30)).await;
    }
    follower.knows(&truth).await;
}

#[tokio::test]
async fn a_token_that_expires_during_a_watch_is_replaced_and_no_peer_is_lost() {
    let cluster = Cluster::new(NETWORK);
    cluster.add_peer(2, 2);
    cluster.server.behave(|it| it.token = Some("first".into()));
    cluster.server.add_node("n3", &["10.3.3.0/24"], true);
    let token = cluster.folder.path().join("token");
    fs::write(&token, "first").unwrap();
    let mut config = ClientConfig::anonymous(cluster.server.url().parse().unwrap());
    config.credentials = Credentials::TokenFile(token.clone());
    let store = KubernetesStore::new(Client::new(config), cluster.options("n1")).unwrap();
    let mut follower = Follower::of(&store, lease(2, 2).subnet);
    follower.knows(&known([lease(2, 2)])).await;
    cluster.publish(2, 22);
    follower.knows(&known([lease(2, 22)])).await;
    // The stream that is open lasts; the next one is refused until the kubelet has written another token.
    cluster.server.behave(|it| it.token = Some("second".into()));
    cluster.publish(3, 3);
    let truth = known([lease(2, 22), lease(3, 3)]);
    follower.knows(&truth).await;
    cluster.server.take_requests();
    cluster.server.cut_streams();
    cluster.server.delete("nodes", "n3");
    super::until("it is refused", || !cluster.server.take_requests().is_empty()).await;
    assert_eq!(follower.known.borrow().as_ref(), Some(&truth));
    fs::write(&token, "second\n").unwrap();
    follower.knows(&known([lease(2, 22)])).await;
}

#[tokio::test]
async fn clocks_of_others_do_not_matter() {
    let cluster = Cluster::new(NETWORK);
    cluster.server.add_node("n1", &["10.3.1.0/24"], true);
    let mut truth = Known::new();
    for (n, time) in [(2, "2000-01-01T00:00:00Z"), (3, "2099-01-01T00:00:00Z")] {
        cluster.add_peer(n, n);
        let beat = json!({"type": "Ready", "status": "Unknown", "lastHeartbeatTime": time, "lastTransitionTime": time});
        let patch =
            json!({"metadata": {"creationTimestamp": time}, "status": {"conditions": [beat]}});
        cluster.server.patch("nodes", &format!("n{n}"), &patch);
        truth.insert(lease(n, n).subnet, lease(n, n).into());
    }
    let available = json!({
        "type": "NetworkUnavailable", "status": "False",
        "lastHeartbeatTime": "2099-01-01T00:00:00Z", "lastTransitionTime": "2099-01-01T00:00:00Z",
    });
    cluster.server.patch("nodes", "n1", &json!({"status": {"conditions": [available]}}));
    let store = cluster.store("n1");
    let mut follower = Follower::of(&store, lease(2, 2).subnet);
    follower.knows(&truth).await;
    let (_ready, is_ready) = watch::channel(true);
    let keeping = tokio::spawn(store.condition().keep(is_ready));
    cluster.server.take_requests();
    sleep(Duration::from_secs(1)).await;
    let asked = cluster.server.take_requests();
    assert!(asked.iter().all(|it| it.method == "GET"), "it is said already: {asked:?}");
    cluster.server.compact();
    cluster.server.cut_streams();
    cluster.add_peer(4, 4);
    truth.insert(lease(4, 4).subnet, lease(4, 4).into());
    follower.knows(&truth).await;
    keeping.abort();
}

#[tokio::test]
async fn what_cannot_be_read_when_the_last_state_is_written_stays_in_it() {
    let mut cluster = Cluster::new(NETWORK);
    cluster.server.add_node("n1", &["10.3.1.0/24"], true);
    cluster.annotate("n1", &json!({"node-public-ip": "192.0.2.77"}));
    cluster.add_peer(2, 2);
    let map = json!({"metadata": {"name": "cfg"}, "data": {"net-conf.json": NETWORK}});
    cluster.server.put("configmaps", "flannel/cfg", map);
    let mut options = cluster.options("n1");
    let file = options.state_file.clone().unwrap();
    options.network = NetworkSource::ConfigMap { namespace: "flannel".into(), name: "cfg".into() };
    let store = cluster.store_with(options.clone());
    let mut follower = Follower::of(&store, lease(2, 2).subnet);
    follower.knows(&known([lease(2, 2)])).await;
    let kept = || fs::read_to_string(&file).unwrap_or_default();
    super::until("the state is kept", || kept().contains("192.0.2.2\"")).await;
    cluster.publish(2, 22);
    follower.knows(&known([lease(2, 22)])).await;
    // The stream that is open lasts, and all else is refused.
    cluster.server.behave(|it| it.token = Some("of others".into()));
    super::until("the state is written", || kept().contains("192.0.2.22\"")).await;
    let state: serde_json::Value = serde_json::from_str(&kept()).unwrap();
    assert_eq!(state["network"], NETWORK);
    assert_eq!(state["addresses"][0], "192.0.2.77");
    // And it is used, whatever was answered first.
    let again = cluster.store_with(options);
    let mut watch = again.watch();
    assert!(watch.next().await.unwrap().is_err(), "it is refused");
    cluster.server.stop();
    assert_eq!(super::next(&mut watch).await, LeaseEvent::reset(vec![lease(2, 22)]));
    assert_eq!(again.config().await.unwrap(), NETWORK.parse().unwrap());
}
