//! How a node keeps its lease, and what it makes of losing it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_new_address_is_published_and_the_subnet_stays() {
    let held = Held::new(OWN);
    let (store, events) = store(&held);
    let backend = fake();
    let node = node(store, backend.clone());
    let handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    settle().await;
    backend.set_address(Ipv4Addr::new(192, 0, 2, 77));
    settle().await;
    assert_eq!(*held.published.lock().unwrap(), [attrs(77)]);
    assert_eq!(handle.status().lease, Some(lease(OWN, 77)));
    assert_eq!(backend.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_at_a_third_of_its_life() {
    let held = Held::new(OWN);
    let (store, events) = store(&held);
    tokio::spawn(node(store, fake()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    sleep(Duration::from_secs(900)).await;
    // Every 27 to 33 s.
    let renewals = held.renewals.load(Ordering::SeqCst);
    assert!((27..=33).contains(&renewals), "{renewals}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_without_an_end_is_left_alone() {
    let held = Held { ttl: None, ..Held::new(OWN) };
    let (store, events) = store(&held);
    tokio::spawn(node(store, fake()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    sleep(Duration::from_secs(100_000)).await;
    assert_eq!(held.renewals.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_trusted_until_its_time_is_over() {
    let held = Held::new(OWN);
    let (store, events) = store(&held);
    let backend = fake();
    let mut handle =
        serving((store, &events), backend.clone(), vec![lease(OWN, 1), lease("10.3.2.0-24", 2)])
            .await;
    sleep(Duration::from_secs(200)).await;
    assert!(handle.status().is_ready());

    held.hanging.store(true, Ordering::SeqCst);
    let doubted = handle.wait_for(|status| !status.trusts_lease()).await.unwrap();
    let silent = held.renewed.lock().unwrap().unwrap().elapsed();
    assert_eq!(silent.as_millis(), 89_100, "a TTL of 90 s less one percent");
    assert_eq!(
        reason(&doubted, Activity::Hold),
        "the lease of 10.3.1.0-24 was not renewed before its time was over, another node may have it"
    );
    assert!(!doubted.is_ready() && doubted.lease.is_some());
    sleep(Duration::from_secs(3600)).await;
    assert!(!handle.status().trusts_lease());
    assert_eq!(backend.routes().len(), 1, "the data path stays");

    held.hanging.store(false, Ordering::SeqCst);
    handle.wait_for(Status::is_ready).await.unwrap();
    assert!(handle.status().faults.is_empty());
}

#[tokio::test(start_paused = true)]
async fn trust_counts_from_the_beginning_of_a_call_that_took_long() {
    #[derive(Debug)]
    struct Slow(MockStore);
    #[async_trait::async_trait]
    impl Store for Slow {
        async fn config(&self) -> Result<NetworkConfig, StoreError> {
            self.0.config().await
        }
        async fn previous(&self) -> Result<Option<Lease>, StoreError> {
            self.0.previous().await
        }
        async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Box<dyn SubnetLease>, StoreError> {
            let lease = self.0.acquire(attrs).await;
            sleep(Duration::from_secs(20)).await;
            lease
        }
        fn watch_config(&self) -> stream::BoxStream<'static, Result<NetworkConfig, StoreError>> {
            stream::pending().boxed()
        }
        fn watch(&self) -> stream::BoxStream<'static, Result<LeaseEvent, StoreError>> {
            self.0.watch()
        }
    }
    let held = Held::new(OWN);
    held.hanging.store(true, Ordering::SeqCst);
    let start = Instant::now();
    let (store, _events) = store(&held);
    let node = node(Slow(store), fake());
    let mut handle = node.handle();
    tokio::spawn(node.run());
    handle.wait_for(Status::trusts_lease).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 20);
    handle.wait_for(|status| !status.trusts_lease()).await.unwrap();
    assert_eq!(start.elapsed().as_millis(), 89_100);
}

#[tokio::test(start_paused = true)]
async fn an_own_lease_that_looks_gone_is_checked_at_once() {
    let held = Held::new(OWN);
    let (store, events) = store(&held);
    tokio::spawn(node(store, fake()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    settle().await;
    events.send(Ok(LeaseEvent::Remove(OWN.parse().unwrap()))).unwrap();
    settle().await;
    assert_eq!(held.renewals.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_taken_anew_and_the_data_path_stays_meanwhile() {
    let held = Held::new(OWN);
    let (store, events) = moving_store(&held);
    let backend = fake();
    let mut handle =
        serving((store, &events), backend.clone(), vec![lease(OWN, 1), lease("10.3.2.0-24", 2)])
            .await;

    held.revoked.store(1, Ordering::SeqCst);
    let thief = lease(OWN, 66).held_by("thief".parse().unwrap());
    events.send(Ok(LeaseEvent::upsert(thief))).unwrap();
    settle().await;
    assert_eq!(handle.status().lease, None);
    let lost = "the lease of 10.3.1.0-24 is gone: it was deleted, or has expired";
    assert_eq!(reason(&handle.status(), Activity::Renew), lost);
    assert_eq!(reason(&handle.status(), Activity::Acquire), "cannot reach the store: down");
    assert_eq!(backend.routes().len(), 1);

    handle.wait_for(Status::is_ready).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(handle.status().lease.unwrap().subnet, "10.3.9.0-24".parse().unwrap());
    assert_eq!(backend.started(), [OWN.parse().unwrap(), "10.3.9.0-24".parse().unwrap()]);
    // The one who has our old subnet is a peer now.
    assert_eq!(backend.routes().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_ends_the_node_if_asked_for() {
    let held = Held::new(OWN);
    let (store, events) = store(&held);
    let options = NodeOptions { on_lease_loss: OnLeaseLoss::Exit, ..NodeOptions::default() };
    let backend = fake();
    let node = Node::from_parts(Arc::new(store), Arc::new(backend.clone()), options);
    let run = tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    held.revoked.store(1, Ordering::SeqCst);
    let error = run.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the lease of 10.3.1.0-24 was lost");
}
