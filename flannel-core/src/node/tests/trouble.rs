//! What goes wrong while something else is under way.

use super::*;
use crate::BackendError;

/// A host that takes its time to start.
#[derive(Clone, Debug)]
struct Odd {
    inner: FakeBackend,
    start_time: Duration,
    starts: Arc<AtomicUsize>,
}

impl Odd {
    fn new() -> Self {
        Self { inner: fake(), start_time: Duration::ZERO, starts: Arc::default() }
    }
}

#[async_trait::async_trait]
impl Backend for Odd {
    async fn advertise<'a>(&'a self, _: Option<&'a Lease>) -> Result<LeaseAttrs, BackendError> {
        Ok(attrs(1))
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
    let node = node(store, backend.clone());
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::Reset(vec![lease(OWN, 1)]))).unwrap();
    handle.wait_for(Status::is_ready).await.unwrap();

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
