//! What a node outlives, and how it ends.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_waiting_can_help_is_waited_for() {
    let (mut store, events) = store(&Held::new(OWN));
    store.checkpoint();
    drop(events);
    let calls = AtomicUsize::new(0);
    store.expect_config().returning(move || match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Err(unavailable()),
        1 => Err(StoreError::ConfigMissing { place: "/x".into() }),
        _ => Ok(config()),
    });
    let [mut previous, mut acquired] = [(); 2].map(|()| Some(unavailable()));
    store.expect_previous().returning(move || previous.take().map_or(Ok(None), Err));
    store.expect_acquire().returning(move |_| match acquired.take() {
        Some(error) => Err(error),
        None => Ok(Box::new(Held::new(OWN))),
    });
    store.expect_watch_config().returning(|| stream::pending().boxed());
    store.expect_watch().returning(|| {
        stream::iter([Ok(LeaseEvent::Reset(vec![]))]).chain(stream::pending()).boxed()
    });
    let backend = fake();
    backend.fail_starts(5);
    let node = node(store, backend.clone());
    let mut handle = node.handle();
    tokio::spawn(node.run());
    settle().await;
    assert_eq!(reason(&handle.status(), Activity::Config), "cannot reach the store: down");
    handle.wait_for(Status::is_ready).await.unwrap();
    assert!(handle.status().last_error.unwrap().starts_with("start the backend: "));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_has_to_correct_ends_the_node() {
    let mut store = MockStore::new();
    store.expect_config().returning(|| {
        let source = "{}".parse::<NetworkConfig>().unwrap_err();
        Err(StoreError::Config { place: "/net/config".into(), source })
    });
    let error = node(store, fake()).run().await.unwrap_err();
    let text = crate::error_chain(&error);
    assert!(text.contains("/net/config") && text.contains("Network is missing"), "{text}");

    let mut store = empty_store();
    store.expect_acquire().returning(|_| {
        Err(StoreError::Denied { operation: "write a lease".into(), source: "read only".into() })
    });
    let text = crate::error_chain(&node(store, fake()).run().await.unwrap_err());
    assert!(text.contains("write a lease: read only"), "{text}");

    let mut backend = MockBackend::new();
    backend.expect_advertise().returning(|_| {
        Err(BackendError::Unsupported { backend: "udp".into(), reason: "no TUN".into() })
    });
    let text = crate::error_chain(&node(empty_store(), backend).run().await.unwrap_err());
    assert!(text.contains("no TUN"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_counts_as_absent() {
    #[derive(Debug)]
    struct Hanging;
    #[async_trait::async_trait]
    impl Store for Hanging {
        async fn config(&self) -> Result<NetworkConfig, StoreError> {
            std::future::pending().await
        }
        async fn previous(&self) -> Result<Option<Lease>, StoreError> {
            unreachable!("config comes first")
        }
        async fn acquire(&self, _: &LeaseAttrs) -> Result<Box<dyn SubnetLease>, StoreError> {
            unreachable!("config comes first")
        }
        fn watch_config(&self) -> stream::BoxStream<'static, Result<NetworkConfig, StoreError>> {
            stream::pending().boxed()
        }
        fn watch(&self) -> stream::BoxStream<'static, Result<LeaseEvent, StoreError>> {
            unreachable!("config comes first")
        }
    }
    let node = node(Hanging, MockBackend::new());
    let mut handle = node.handle();
    tokio::spawn(node.run());
    let status = handle.wait_for(|status| !status.faults.is_empty()).await.unwrap();
    assert_eq!(
        reason(&status, Activity::Config),
        "cannot read the network config: deadline has elapsed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_asked_to_stop_leaves_lease_and_data_path() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    backend.slow_syncs(Duration::from_millis(300));
    let node = node(store, backend.clone());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    let stopped = node.run_until(sleep(Duration::from_millis(100))).await.unwrap();
    // The sync that was under way is finished.
    assert_eq!(backend.routes().len(), 1);
    assert_eq!(stopped.lease.unwrap().lease().subnet, OWN.parse().unwrap());
    stopped.network.unwrap().teardown().await.unwrap();
    assert!(backend.routes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_run_any_more_is_not_ready() {
    let held = Held::new(OWN);
    let (store, events) = store(&held);
    let node = node(store, fake());
    let mut handle = node.handle();
    let run = tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    handle.wait_for(Status::is_ready).await.unwrap();
    run.abort();
    assert!(handle.wait_for(|status| status.ended).await.is_some());
    let status = handle.status();
    assert!(!status.is_ready() && status.lease.is_some());
    assert!(handle.wait_for(Status::is_ready).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_nothing_that_hangs() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    backend.slow_syncs(Duration::from_secs(3600));
    let node = node(store, backend.clone());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    let stop = node.run_until(sleep(Duration::from_millis(100)));
    timeout(Duration::from_secs(1), stop).await.expect("within a second").unwrap();
}
