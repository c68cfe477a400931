//! What goes wrong while something else is under way.

use futures::FutureExt;

use super::*;
use crate::FaultKind;
use crate::{BackendError, Peers, SyncReport, testing::MockNetwork};

/// A host that takes its time to start, and whose address changes without anybody telling the network.
#[derive(Clone, Debug)]
struct Odd {
    inner: FakeBackend,
    start_time: Duration,
    starts: Arc<AtomicUsize>,
    /// What is advertised next; after that it is always the same.
    advertised: Arc<Mutex<Vec<LeaseAttrs>>>,
}

impl Odd {
    fn new() -> Self {
        Self {
            inner: fake(),
            start_time: Duration::ZERO,
            starts: Arc::default(),
            advertised: Arc::default(),
        }
    }
}

#[async_trait::async_trait]
impl Backend for Odd {
    async fn advertise<'a>(&'a self, _: Option<&'a Lease>) -> Result<LeaseAttrs, BackendError> {
        let mut left = self.advertised.lock().unwrap();
        Ok(if left.is_empty() { attrs(1) } else { left.remove(0) })
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        sleep(self.start_time).await;
        self.inner.start(lease).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_moved_is_not_ready_before_its_new_data_path_is_up() {
    let held = Held::new(OWN);
    let (store, events) = moving_store(&held);
    let backend = fake();
    let mut handle = serving((store, &events), backend.clone(), vec![lease(OWN, 1)]).await;

    backend.fail_starts(3);
    held.revoked.store(1, Ordering::SeqCst);
    events.send(Ok(LeaseEvent::Remove(OWN.parse().unwrap()))).unwrap();
    handle.wait_for(|status| status.lease.is_none()).await.unwrap();
    handle.wait_for(|status| status.lease.is_some()).await.unwrap();
    while backend.started().len() == 1 {
        assert!(!handle.status().is_ready());
        sleep(Duration::from_millis(10)).await;
    }
    handle.wait_for(Status::is_ready).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn renewals_do_not_disturb_a_slow_start() {
    let held = Held { ttl: Some(Duration::from_secs(9)), ..Held::new(OWN) };
    let (store, events) = store(&held);
    let backend = Odd { start_time: Duration::from_secs(20), ..Odd::new() };
    let starts = Arc::clone(&backend.starts);
    let node = node(store, backend);
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    let ready = timeout(Duration::from_secs(25), handle.wait_for(Status::is_ready)).await;
    ready.expect("ready as soon as it has started");
    assert_eq!(starts.load(Ordering::SeqCst), 1);
    assert!(held.renewals.load(Ordering::SeqCst) >= 5, "the lease is kept meanwhile");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_changed_while_the_store_was_away_is_published() {
    let held = Held::new(OWN);
    let (store, events) = store(&held);
    let backend = Odd::new();
    *backend.advertised.lock().unwrap() = vec![attrs(1), attrs(77), attrs(77)];
    tokio::spawn(node(store, backend).run());
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    settle().await;
    assert_eq!(*held.published.lock().unwrap(), [attrs(77)]);
}

#[tokio::test(start_paused = true)]
async fn what_to_publish_is_asked_again_until_it_is_known() {
    let mut backend = MockBackend::new();
    let mut calls = 0;
    backend.expect_advertise().returning(move |_| {
        calls += 1;
        if calls == 2 {
            Err(BackendError::Interface { source: "gone".into() })
        } else {
            Ok(attrs(1))
        }
    });
    backend.expect_start().returning(|lease| fake().start(lease).now_or_never().unwrap());
    let (store, events) = store(&Held::new(OWN));
    let mut handle = serving((store, &events), backend, vec![lease(OWN, 1)]).await;
    let is_at_fault = |status: &Status| status.fault(Activity::Advertise).is_some();
    assert!(is_at_fault(&handle.status()));
    handle.wait_for(|status| !is_at_fault(status)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_network_that_cannot_tell_of_drift_is_synced_at_growing_intervals() {
    let (store, events) = store(&Held::new(OWN));
    let syncs = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&syncs);
    let mut backend = MockBackend::new();
    backend.expect_advertise().returning(|_| Ok(attrs(1)));
    backend.expect_start().returning(move |_| {
        let (log, calls) = (Arc::clone(&log), AtomicUsize::new(0));
        let mut network = MockNetwork::new();
        network.expect_mtu().return_const(1500_u32);
        network.expect_drifted().returning(move || match calls.fetch_add(1, Ordering::SeqCst) {
            8 => Ok(()),
            _ => Err(BackendError::Kernel { operation: "listen".into(), source: "deaf".into() }),
        });
        network.expect_sync().returning(move |_: &Peers| {
            log.lock().unwrap().push(Instant::now());
            Ok(SyncReport::default())
        });
        Ok(Box::new(network))
    });
    tokio::spawn(node(store, backend).run());
    events.send(Ok(LeaseEvent::Reset(vec![]))).unwrap();
    sleep(Duration::from_secs(300)).await;
    let syncs = syncs.lock().unwrap();
    let waits: Vec<_> = syncs.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[7] >= Duration::from_secs(10), "the waits grow: {waits:?}");
    assert!(waits[9] < Duration::from_millis(300), "and start over: {waits:?}");
    assert!((15..=40).contains(&syncs.len()), "and the syncs go on: {waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_at_once_is_asked_at_a_bounded_pace() {
    let mut store = empty_store();
    let polled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&polled);
    store.expect_acquire().returning(|_| Ok(Box::new(Held::new(OWN))));
    store.expect_watch_config().returning(|| stream::pending().boxed());
    store.expect_watch().returning(move || {
        let counter = Arc::clone(&counter);
        let errors = stream::repeat_with(move || {
            // Enough for the node to come to an end if nothing slows it down.
            assert!(counter.fetch_add(1, Ordering::SeqCst) < 10_000, "asked again and again");
            Err(unavailable())
        });
        errors.boxed()
    });
    let node = node(store, fake());
    let handle = node.handle();
    tokio::spawn(node.run());
    sleep(Duration::from_secs(60)).await;
    let polled = polled.load(Ordering::SeqCst);
    assert!((60..=130).contains(&polled), "{polled} times in a minute");
    assert_eq!(handle.status().fault(Activity::Watch).unwrap().kind, FaultKind::StoreAway);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_has_worked_again_is_asked_soon_after_an_error() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    let _handle = serving((store, &events), backend.clone(), vec![]).await;
    // The first errors in a row make the pauses as long as they get.
    (0..9).for_each(|_| events.send(Err(unavailable())).unwrap());
    sleep(Duration::from_secs(10)).await;
    for n in [2, 3] {
        events.send(Ok(LeaseEvent::upsert(lease(&format!("10.3.{n}.0-24"), n)))).unwrap();
        events.send(Err(unavailable())).unwrap();
    }
    sleep(Duration::from_millis(300)).await;
    assert_eq!(backend.routes().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_opened_again_at_growing_intervals() {
    let mut store = empty_store();
    let opened = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&opened);
    store.expect_acquire().returning(|_| Ok(Box::new(Held::new(OWN))));
    store.expect_watch_config().returning(|| stream::pending().boxed());
    store.expect_watch().returning(move || {
        let mut opened = log.lock().unwrap();
        opened.push(Instant::now());
        // Enough for the node to come to an end if nothing slows it down.
        assert!(opened.len() < 100, "opened again and again");
        let lasts = Duration::from_secs(if opened.len() == 7 { 100 } else { 0 });
        let reset = LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]);
        let end = stream::once(sleep(lasts)).filter_map(async |()| None);
        stream::iter([Ok(reset)]).chain(end).boxed()
    });
    let node = node(store, fake());
    let handle = node.handle();
    let run = tokio::spawn(node.run());
    sleep(Duration::from_secs(300)).await;
    assert!(!run.is_finished());
    assert!(handle.status().is_ready(), "what was known stays");
    let opened = opened.lock().unwrap();
    let waits: Vec<_> = opened.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[5] >= Duration::from_secs(3), "the waits grow: {waits:?}");
    assert!(waits[6] < Duration::from_millis(100_300), "and start over: {waits:?}");
    assert!(waits[13..].iter().all(|it| *it > Duration::from_secs(10)), "and stay long: {waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_loss_that_shows_during_a_renewal_is_checked_after_it() {
    let held = Held { renew_time: Duration::from_secs(2), ..Held::new(OWN) };
    let (store, events) = store(&held);
    tokio::spawn(node(store, fake()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    settle().await;
    events.send(Ok(LeaseEvent::upsert(lease(OWN, 66)))).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(held.renewals.load(Ordering::SeqCst), 1, "under way");
    events.send(Ok(LeaseEvent::Remove(OWN.parse().unwrap()))).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(held.renewals.load(Ordering::SeqCst), 2);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(held.renewals.load(Ordering::SeqCst), 2, "once is enough");
}

#[tokio::test(start_paused = true)]
async fn a_short_lease_is_not_left_unrenewed_when_a_store_comes_back() {
    let held = Held { ttl: Some(Duration::from_secs(5)), ..Held::new(OWN) };
    let away = Arc::clone(&held.away);
    let (store, events) = store(&held);
    tokio::spawn(node(store, fake()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    settle().await;
    away.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(1000)).await;
    let before = held.renewals.load(Ordering::SeqCst);
    sleep(Duration::from_secs(10)).await;
    let renewals = held.renewals.load(Ordering::SeqCst) - before;
    assert!((15..=50).contains(&renewals), "{renewals} in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn an_own_lease_that_is_written_as_it_is_is_checked_without_hurry() {
    let held = Held { renew_time: Duration::from_millis(100), ..Held::new(OWN) };
    let (store, events) = store(&held);
    tokio::spawn(node(store, fake()).run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    sleep(Duration::from_secs(10)).await;
    for _ in 0..40 {
        events.send(Ok(LeaseEvent::upsert(lease(OWN, 1)))).unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    let renewals = held.renewals.load(Ordering::SeqCst);
    assert!((3..=5).contains(&renewals), "{renewals} in four seconds");
    sleep(Duration::from_secs(5)).await;
    assert!(held.renewals.load(Ordering::SeqCst) <= renewals + 1, "and an end");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_again_and_again_is_taken_at_growing_intervals() {
    let held = Held::new(OWN);
    let revoked = Arc::clone(&held.revoked);
    revoked.store(usize::MAX, Ordering::SeqCst);
    let mut store = empty_store();
    let acquired = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&acquired);
    let send = follow(&mut store);
    let events = send.clone();
    store.expect_acquire().returning(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        let took = LeaseEvent::upsert(lease(OWN, 1));
        let lost = LeaseEvent::upsert(lease(OWN, 66));
        let send = send.clone();
        // The other node with our name is as fast as we are.
        tokio::spawn(async move {
            sleep(Duration::from_millis(1)).await;
            send.send(Ok(took)).unwrap();
            send.send(Ok(lost.clone())).unwrap();
            sleep(Duration::from_millis(5)).await;
            send.send(Ok(lost)).unwrap();
        });
        Ok(Box::new(held.clone()))
    });
    tokio::spawn(node(store, fake()).run());
    sleep(Duration::from_secs(60)).await;
    let early = acquired.load(Ordering::SeqCst);
    assert!((4..=20).contains(&early), "taken {early} times in a minute");

    // After a time of calm it is taken at once again.
    revoked.store(0, Ordering::SeqCst);
    sleep(Duration::from_secs(120)).await;
    let calm = acquired.load(Ordering::SeqCst);
    revoked.store(2, Ordering::SeqCst);
    events.send(Ok(LeaseEvent::Remove(OWN.parse().unwrap()))).unwrap();
    settle().await;
    assert_eq!(acquired.load(Ordering::SeqCst), calm + 1);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(acquired.load(Ordering::SeqCst), calm + 2, "and the waits start over");
}

#[tokio::test(start_paused = true)]
async fn what_hangs_is_named() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    backend.slow_syncs(Duration::from_secs(3600));
    let node = node(store, backend);
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    let failed = |status: &Status| status.fault(Activity::Sync).is_some();
    let status = handle.wait_for(failed).await.unwrap();
    assert_eq!(reason(&status, Activity::Sync), "cannot sync the data path: deadline has elapsed");
}
