//! The loop against a scripted store. How it behaves on a real store is tested with the stores.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    Activity, Backend, Lease, LeaseAttrs, LeaseEvent, NetworkConfig, Store, StoreError,
    testing::{FakeBackend, MockBackend, MockStore},
};

mod accidents;
mod lease_holding;
mod logged;
mod shown;
mod stopping;
mod trouble;

const OWN: &str = "10.3.1.0-24";

fn config() -> NetworkConfig {
    r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap()
}

fn attrs(host: u8) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(192, 0, 2, host)),
        backend_type: "fake".into(),
        ..LeaseAttrs::default()
    }
}

fn lease(key: &str, host: u8) -> Lease {
    Lease::new(key.parse().unwrap(), attrs(host))
}

fn unavailable() -> StoreError {
    StoreError::Unavailable { operation: "reach the store".into(), source: "down".into() }
}

/// A lease that is renewed and published without a store behind it.
#[derive(Clone, Debug)]
struct Held {
    lease: Lease,
    ttl: Option<Duration>,
    renew_time: Duration,
    renewals: Arc<AtomicUsize>,
    published: Arc<Mutex<Vec<LeaseAttrs>>>,
    revoked: Arc<AtomicUsize>,
    /// Whether renewals never end.
    hanging: Arc<AtomicBool>,
    /// Whether renewals fail.
    away: Arc<AtomicBool>,
    /// When the last renewal began that did.
    renewed: Arc<Mutex<Option<Instant>>>,
}

impl Held {
    fn new(key: &str) -> Self {
        Self {
            lease: lease(key, 1),
            ttl: Some(Duration::from_secs(90)),
            renew_time: Duration::ZERO,
            renewals: Arc::default(),
            published: Arc::default(),
            revoked: Arc::default(),
            hanging: Arc::default(),
            away: Arc::default(),
            renewed: Arc::default(),
        }
    }

    fn checked(&self) -> Result<(), StoreError> {
        if self.revoked.load(Ordering::SeqCst) > 0 {
            self.revoked.fetch_sub(1, Ordering::SeqCst);
            return Err(StoreError::Revoked { subnet: self.lease.subnet, owner: None });
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl SubnetLease for Held {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        sleep(self.renew_time).await;
        if self.hanging.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.away.load(Ordering::SeqCst) {
            return Err(unavailable());
        }
        *self.renewed.lock().unwrap() = Some(Instant::now());
        self.checked()
    }

    async fn publish(&mut self, attrs: &LeaseAttrs) -> Result<(), StoreError> {
        self.checked()?;
        self.published.lock().unwrap().push(attrs.clone());
        self.lease.attrs = attrs.clone();
        Ok(())
    }

    async fn release(self: Box<Self>) -> Result<(), StoreError> {
        self.checked()
    }
}

/// Lets the store be watched, once, and follow what the test sends.
fn follow(store: &mut MockStore) -> mpsc::UnboundedSender<Result<LeaseEvent, StoreError>> {
    let (send, receive) = mpsc::unbounded_channel();
    let receive = Mutex::new(Some(receive));
    store.expect_watch_config().returning(|| stream::pending().boxed());
    store.expect_watch().returning(move || {
        let receive = receive.lock().unwrap().take().expect("watched once");
        stream::unfold(receive, |mut receive: mpsc::UnboundedReceiver<_>| async {
            let item = receive.recv().await?;
            Some((item, receive))
        })
        .chain(stream::pending())
        .boxed()
    });
    send
}

/// Lets the store's configuration be followed, once, as the test sends it.
fn follow_config(
    store: &mut MockStore,
) -> mpsc::UnboundedSender<Result<NetworkConfig, StoreError>> {
    let (send, receive) = mpsc::unbounded_channel();
    let receive = Mutex::new(Some(receive));
    store.expect_watch_config().returning(move || {
        let receive = receive.lock().unwrap().take().expect("watched once");
        stream::unfold(receive, |mut receive: mpsc::UnboundedReceiver<_>| async {
            let item = receive.recv().await?;
            Some((item, receive))
        })
        .boxed()
    });
    send
}

/// A store with a network and no lease yet.
fn empty_store() -> MockStore {
    let mut store = MockStore::new();
    store.expect_config().returning(|| Ok(config()));
    store.expect_previous().returning(|| Ok(None));
    store
}

/// A store that hands out `held` and follows what the test sends.
fn store(held: &Held) -> (MockStore, mpsc::UnboundedSender<Result<LeaseEvent, StoreError>>) {
    let mut store = empty_store();
    let held = held.clone();
    store.expect_acquire().returning(move |_| Ok(Box::new(held.clone())));
    let events = follow(&mut store);
    (store, events)
}

/// A store that first hands out 10.3.1.0/24 and later 10.3.9.0/24.
fn moving_store(held: &Held) -> (MockStore, mpsc::UnboundedSender<Result<LeaseEvent, StoreError>>) {
    let mut store = empty_store();
    let (first, next) = (held.clone(), Held::new("10.3.9.0-24"));
    let calls = AtomicUsize::new(0);
    store.expect_acquire().returning(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(Box::new(first.clone())),
        1 => Err(unavailable()),
        _ => Ok(Box::new(next.clone())),
    });
    let events = follow(&mut store);
    (store, events)
}

fn node(store: impl Store, backend: impl Backend) -> Node {
    let options = NodeOptions { seed: 7, ..NodeOptions::default() };
    Node::from_parts(Arc::new(store), Arc::new(backend), options)
}

/// Runs a node until it serves the peers of these leases.
async fn serving(
    (store, events): (MockStore, &mpsc::UnboundedSender<Result<LeaseEvent, StoreError>>),
    backend: impl Backend,
    leases: Vec<Lease>,
) -> NodeHandle {
    let node = node(store, backend);
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(leases))).unwrap();
    handle.wait_for(Status::is_ready).await.unwrap();
    handle
}

fn fake() -> FakeBackend {
    FakeBackend::new(Ipv4Addr::new(192, 0, 2, 1))
}

fn reason(status: &Status, activity: Activity) -> String {
    status.fault(activity).map(|fault| fault.reason.clone()).unwrap_or_default()
}

async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_is_ready_after_lease_first_snapshot_and_first_sync() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    backend.slow_syncs(Duration::from_secs(1));
    let node = node(store, backend.clone());
    let handle = node.handle();
    tokio::spawn(node.run());
    settle().await;
    assert_eq!(handle.status().lease, Some(lease(OWN, 1)));
    assert_eq!((handle.status().is_ready(), backend.syncs()), (false, 0));

    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1), lease("10.3.2.0-24", 2)]))).unwrap();
    settle().await;
    assert_eq!((handle.status().is_ready(), handle.status().peers), (false, Some(1)));
    sleep(Duration::from_secs(1)).await;
    assert!(handle.status().is_ready());
    assert_eq!(backend.routes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_synced_before_the_peers_are_known() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    backend.meddle(|routes| {
        routes.insert("10.3.2.0-24".parse().unwrap(), [192, 0, 2, 2].into());
    });
    tokio::spawn(node(store, backend.clone()).run());
    events.send(Ok(LeaseEvent::upsert(lease("10.3.3.0-24", 3)))).unwrap();
    events.send(Err(unavailable())).unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!((backend.syncs(), backend.routes().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_events_is_one_sync() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    tokio::spawn(node(store, backend.clone()).run());
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    for n in 2..250 {
        events.send(Ok(LeaseEvent::upsert(lease(&format!("10.3.{n}.0-24"), n)))).unwrap();
    }
    settle().await;
    assert_eq!((backend.syncs(), backend.routes().len()), (1, 248));
}

#[tokio::test(start_paused = true)]
async fn events_during_a_sync_are_in_the_next_one() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    backend.slow_syncs(Duration::from_secs(1));
    tokio::spawn(node(store, backend.clone()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    settle().await;
    events.send(Ok(LeaseEvent::upsert(lease("10.3.4.0-24", 4)))).unwrap();
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.3.0-24", 3)]))).unwrap();
    sleep(Duration::from_secs(3)).await;
    let keys = || backend.routes().into_keys().map(|key| key.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (backend.syncs(), keys()),
        (2, vec!["10.3.2.0-24".into(), "10.3.3.0-24".into(), "10.3.4.0-24".into()])
    );
    sleep(NodeOptions::default().bulk_removal_grace + Duration::from_secs(3)).await;
    assert_eq!(keys(), ["10.3.3.0-24"]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_comes_back_at_once_is_served_all_the_time() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    let (node, grace) = (node(store, backend.clone()), NodeOptions::default().removal_grace);
    let handle = node.handle();
    tokio::spawn(node.run());
    let peer = lease("10.3.2.0-24", 2);
    events.send(Ok(LeaseEvent::reset(vec![peer.clone()]))).unwrap();
    settle().await;
    events.send(Ok(LeaseEvent::Remove(peer.subnet))).unwrap();
    sleep(grace - Duration::from_millis(100)).await;
    events.send(Ok(LeaseEvent::upsert(peer.clone()))).unwrap();
    sleep(2 * grace).await;
    assert_eq!((backend.syncs(), backend.routes().len()), (1, 1));

    events.send(Ok(LeaseEvent::Remove(peer.subnet))).unwrap();
    sleep(grace - Duration::from_millis(1)).await;
    assert_eq!((handle.status().peers, backend.routes().len()), (Some(1), 1));
    sleep(Duration::from_millis(2)).await;
    assert_eq!((handle.status().peers, backend.routes().len()), (Some(0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_failing_sync_is_tried_again_until_it_succeeds() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    backend.fail_syncs(3);
    let node = node(store, backend.clone());
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    settle().await;
    assert_eq!(reason(&handle.status(), Activity::Sync), "cannot sync: refused by the test");
    assert!(!handle.status().is_ready());
    let start = Instant::now();
    handle.wait_for(Status::is_ready).await.unwrap();
    // Three waits of 200, 400 and 800 ms, each cut by up to half.
    assert!((700..1400).contains(&start.elapsed().as_millis()));
    assert!(handle.status().faults.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_change_by_somebody_else_is_undone() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    tokio::spawn(node(store, backend.clone()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    settle().await;
    backend.meddle(|routes| routes.clear());
    settle().await;
    assert_eq!(backend.routes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn changes_without_end_cost_a_bounded_number_of_syncs() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    tokio::spawn(node(store, backend.clone()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    for _ in 0..1000 {
        sleep(Duration::from_millis(1)).await;
        backend.meddle(|routes| routes.clear());
    }
    assert!((10..=25).contains(&backend.syncs()), "{}", backend.syncs());
}

#[tokio::test(start_paused = true)]
async fn an_embedder_can_look_at_all_peers() {
    let (store, events) = store(&Held::new(OWN));
    let node = node(store, fake());
    let handle = node.handle();
    tokio::spawn(node.run());
    events
        .send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2), lease("10.4.2.0-24", 3)])))
        .unwrap();
    let peers = handle.peers().await.unwrap();
    assert_eq!(peers.iter().cloned().collect::<Vec<_>>(), [lease("10.3.2.0-24", 2)]);
    assert_eq!(handle.status().refused.len(), 1);
}
