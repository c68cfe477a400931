//! What goes wrong while something else is under way.

use super::*;

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
