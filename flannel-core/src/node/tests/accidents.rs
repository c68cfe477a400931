//! Accidents of the store, and changes of the configuration under a running node.

use super::*;
use crate::{BackendConfig, FaultKind, Liveness, testing::MockNetwork};

type Events = mpsc::UnboundedSender<Result<LeaseEvent, StoreError>>;
type Configs = mpsc::UnboundedSender<Result<NetworkConfig, StoreError>>;

fn missing() -> StoreError {
    StoreError::ConfigMissing { place: "/net/config".into() }
}

/// A store whose leases and configuration follow what the test sends.
fn changing_store(held: &Held) -> (MockStore, Events, Configs) {
    let mut store = empty_store();
    let configs = follow_config(&mut store);
    let held = held.clone();
    store.expect_acquire().returning(move |_| Ok(Box::new(held.clone())));
    let events = follow(&mut store);
    (store, events, configs)
}

fn four_peers() -> Vec<Lease> {
    (2..=5).map(|n| lease(&format!("10.3.{n}.0-24"), n)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_wiped_store_takes_no_peer_away_while_its_config_is_gone_and_two_minutes_after() {
    let (store, events, configs) = changing_store(&Held::new(OWN));
    let backend = fake();
    let handle = serving((store, &events), backend.clone(), four_peers()).await;
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    configs.send(Err(missing())).unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(backend.routes().len(), 4);
    let fault = handle.status().fault(Activity::Config).cloned().unwrap();
    assert_eq!(fault.kind, FaultKind::ConfigMissing);

    configs.send(Ok(config())).unwrap();
    sleep(Duration::from_secs(119)).await;
    assert_eq!((backend.routes().len(), handle.status().fault(Activity::Config)), (4, None));
    events.send(Ok(LeaseEvent::upsert(lease("10.3.2.0-24", 2)))).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(backend.routes().len(), 1, "who has not come back is gone");
}

#[tokio::test(start_paused = true)]
async fn an_old_snapshot_takes_no_peer_away_that_comes_back_or_answers() {
    #[derive(Debug)]
    struct Answers(Lease);
    impl Liveness for Answers {
        fn answers(&self, peer: &Lease) -> bool {
            *peer == self.0
        }
    }
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    let mut node = node(store, backend.clone());
    node.options.liveness = Some(Arc::new(Answers(lease("10.3.4.0-24", 4))));
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(four_peers()))).unwrap();
    settle().await;
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    for n in [3, 5] {
        sleep(Duration::from_secs(40)).await;
        assert_eq!(backend.routes().len(), 4);
        if n == 3 {
            events.send(Ok(LeaseEvent::upsert(lease("10.3.3.0-24", 3)))).unwrap();
        }
    }
    sleep(Duration::from_secs(600)).await;
    let keys: Vec<_> = backend.routes().into_keys().map(|key| key.to_string()).collect();
    assert_eq!(keys, ["10.3.2.0-24", "10.3.3.0-24", "10.3.4.0-24"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_taken_anew_as_soon_as_the_config_is_back() {
    let held = Held::new(OWN);
    held.revoked.store(1, Ordering::SeqCst);
    let mut store = empty_store();
    let configs = follow_config(&mut store);
    let (calls, gone) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(true)));
    let away = Arc::clone(&gone);
    store.expect_acquire().returning(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(Box::new(held.clone())),
        _ if away.load(Ordering::SeqCst) => Err(missing()),
        _ => Ok(Box::new(held.clone())),
    });
    let events = follow(&mut store);
    let handle = serving((store, &events), fake(), vec![lease(OWN, 1)]).await;
    configs.send(Err(missing())).unwrap();
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(handle.status().lease, None);
    gone.store(false, Ordering::SeqCst);
    configs.send(Ok(config())).unwrap();
    settle().await;
    assert_eq!(handle.status().lease, Some(lease(OWN, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_node_starts_as_soon_as_there_is_a_config() {
    let mut store = MockStore::new();
    let configs = follow_config(&mut store);
    let there = Arc::new(AtomicBool::new(false));
    let is_there = Arc::clone(&there);
    store.expect_config().returning(move || match is_there.load(Ordering::SeqCst) {
        true => Ok(config()),
        false => Err(missing()),
    });
    store.expect_previous().returning(|| Ok(None));
    store.expect_acquire().returning(|_| Err(unavailable()));
    let node = node(store, fake());
    let handle = node.handle();
    tokio::spawn(node.run());
    sleep(Duration::from_secs(600)).await;
    assert!(handle.status().fault(Activity::Config).is_some());
    there.store(true, Ordering::SeqCst);
    configs.send(Ok(config())).unwrap();
    settle().await;
    assert_eq!(handle.status().fault(Activity::Config), None);
}

#[tokio::test(start_paused = true)]
async fn an_enlarged_network_lets_newcomers_in() {
    let (store, events, configs) = changing_store(&Held::new(OWN));
    let backend = fake();
    let newcomer = lease("10.7.7.0-24", 7);
    let mut leases = four_peers();
    leases.push(newcomer.clone());
    let handle = serving((store, &events), backend.clone(), leases).await;
    assert_eq!((backend.routes().len(), handle.status().refused.len()), (4, 1));
    let enlarged: NetworkConfig = r#"{"Network":"10.0.0.0/12"}"#.parse().unwrap();
    configs.send(Ok(enlarged.clone())).unwrap();
    settle().await;
    assert!(backend.routes().contains_key(&newcomer.subnet));
    let status = handle.status();
    assert_eq!((status.refused.len(), status.config), (0, Some(enlarged)));
    assert!(status.faults.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_replaced_network_is_said_with_both_values_and_the_peers_are_served() {
    let (store, events, configs) = changing_store(&Held::new(OWN));
    let backend = fake();
    let handle = serving((store, &events), backend.clone(), four_peers()).await;
    configs.send(Ok(r#"{"Network":"10.9.0.0/16"}"#.parse().unwrap())).unwrap();
    settle().await;
    let status = handle.status();
    let fault = status.fault(Activity::Config).unwrap();
    let text = fault.to_string();
    assert!(text.contains("10.9.0.0/16") && text.contains("10.3.0.0/16"), "{text}");
    assert_eq!(fault.kind, FaultKind::ConfigChanged);
    assert!(status.is_ready(), "those that it has are served");
    assert_eq!((backend.routes().len(), status.config), (4, Some(config())));
    configs.send(Ok(config())).unwrap();
    settle().await;
    assert_eq!(handle.status().fault(Activity::Config), None, "it was corrected");
}

#[tokio::test(start_paused = true)]
async fn options_that_the_backend_takes_up_are_in_force_and_others_are_said() {
    let mut backend = MockBackend::new();
    backend.expect_advertise().returning(|_| Ok(attrs(1)));
    backend.expect_start().returning(|_| {
        let mut network = MockNetwork::new();
        let mtu = Arc::new(AtomicUsize::new(1450));
        let now = Arc::clone(&mtu);
        network.expect_mtu().returning(move || u32::try_from(now.load(Ordering::SeqCst)).unwrap());
        network.expect_sync().returning(|_| Ok(crate::SyncReport::default()));
        network.expect_drifted().returning(|| {
            Err(BackendError::Kernel { operation: "hear".into(), source: "deaf".into() })
        });
        network.expect_migrate().returning(|config| match config.backend().kind() {
            "other" => Ok(()),
            kind => Err(BackendError::Unsupported { backend: kind.into(), reason: "no".into() }),
        });
        network.expect_reconfigure().returning(move |options: &BackendConfig| {
            match options.options().integer("MTU", 0..=9000) {
                Ok(Some(new)) => {
                    mtu.store(usize::try_from(new).unwrap(), Ordering::SeqCst);
                    Ok(())
                }
                _ => Err(BackendError::Unsupported { backend: "fake".into(), reason: "no".into() }),
            }
        });
        Ok(Box::new(network))
    });
    let mut store = MockStore::new();
    let config = |options: &str| -> NetworkConfig {
        format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"fake"{options}}}}}"#)
            .parse()
            .unwrap()
    };
    store.expect_config().returning(move || Ok(config("")));
    store.expect_previous().returning(|| Ok(None));
    let configs = follow_config(&mut store);
    store.expect_acquire().returning(|_| Ok(Box::new(Held::new(OWN))));
    let events = follow(&mut store);
    let handle = serving((store, &events), backend, four_peers()).await;
    configs.send(Ok(config(r#","MTU":1400"#))).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!((handle.status().mtu, handle.status().fault(Activity::Config)), (Some(1400), None));
    configs.send(Ok(config(r#","VNI":7"#))).unwrap();
    sleep(Duration::from_secs(1)).await;
    let text = handle.status().fault(Activity::Config).unwrap().to_string();
    assert!(text.contains(r#""VNI":7"#) && text.contains(r#""MTU":1400"#), "{text}");
    assert_eq!(handle.status().config, Some(config(r#","MTU":1400"#)));
    configs.send(Ok(config(r#","PSK":"aGlkZGVu""#))).unwrap();
    sleep(Duration::from_secs(1)).await;
    let text = handle.status().fault(Activity::Config).unwrap().to_string();
    assert!(text.contains(r#""PSK":"…""#) && !text.contains("aGlkZGVu"), "{text}");

    // Another backend is not a matter of options.
    for (kind, refused) in [("third", true), ("other", false)] {
        let json = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
        let wanted: NetworkConfig = json.parse().unwrap();
        configs.send(Ok(wanted.clone())).unwrap();
        sleep(Duration::from_secs(1)).await;
        let status = handle.status();
        assert_eq!(status.config != Some(wanted), refused);
        let said = status.fault(Activity::Config).map(ToString::to_string).unwrap_or_default();
        for part in ["cannot adopt Backend.Type third from the network config", "work here: no"] {
            assert_eq!(said.contains(part), refused, "{said}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_alters_what_is_published_is_no_reason_to_spin() {
    #[derive(Debug)]
    struct Altering(Held, Arc<AtomicUsize>);
    #[async_trait::async_trait]
    impl SubnetLease for Altering {
        fn lease(&self) -> &Lease {
            self.0.lease()
        }
        fn ttl(&self) -> Option<Duration> {
            self.0.ttl()
        }
        async fn renew(&mut self) -> Result<(), StoreError> {
            self.0.renew().await
        }
        async fn publish(&mut self, _: &LeaseAttrs) -> Result<(), StoreError> {
            assert!(self.1.fetch_add(1, Ordering::SeqCst) < 1000, "published again and again");
            Ok(())
        }
        async fn release(self: Box<Self>) -> Result<(), StoreError> {
            Ok(())
        }
    }
    let mut store = empty_store();
    let published = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&published);
    store
        .expect_acquire()
        .returning(move |_| Ok(Box::new(Altering(Held::new(OWN), Arc::clone(&counter)))));
    let events = follow(&mut store);
    let backend = fake();
    let handle = serving((store, &events), backend.clone(), four_peers()).await;
    backend.set_address(Ipv4Addr::new(192, 0, 2, 99));
    sleep(Duration::from_secs(60)).await;
    let published = published.load(Ordering::SeqCst);
    assert!((2..=40).contains(&published), "{published} times in a minute");
    let text = handle.status().fault(Activity::Renew).unwrap().to_string();
    assert!(text.contains("192.0.2.99") && text.contains("192.0.2.1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_cannot_serve_is_refused_at_the_start_and_not_published_later() {
    let mut store = empty_store();
    store.expect_acquire().never();
    let error = node(store, FakeBackend::new(Ipv4Addr::UNSPECIFIED)).run().await.unwrap_err();
    let text = crate::fault::error_chain(&error);
    assert!(text.contains("0.0.0.0") && text.contains("unspecified"), "{text}");

    let held = Held::new(OWN);
    let (store, events) = super::store(&held);
    let backend = fake();
    let handle = serving((store, &events), backend.clone(), four_peers()).await;
    backend.set_address(Ipv4Addr::new(127, 0, 0, 1));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(handle.status().fault(Activity::Advertise).unwrap().kind, FaultKind::AddressMissing);
    assert!(held.published.lock().unwrap().is_empty());
}
