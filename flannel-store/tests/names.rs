//! Two nodes with one name, as after a machine was cloned: who had the lease keeps it, and the other is told.

use std::{sync::Arc, time::Duration};

use flannel_core::{
    Activity, LeaseAttrs, Node, NodeHandle, NodeOptions, Status, Store, StoreError, Subnet,
    testing::FakeBackend,
};
use flannel_store::{
    LeaseOptions, Lifetime, NewRecord,
    testing::{Cut, FaultyCluster},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

const TTL: Duration = Duration::from_secs(300);

fn cluster() -> FaultyCluster {
    FaultyCluster::new(&r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap())
}

/// A node with a name at 192.0.2.`last`.
fn start(cluster: &FaultyCluster, name: &str, last: u8) -> (JoinHandle<()>, NodeHandle) {
    let options = LeaseOptions { ttl: TTL, ..LeaseOptions::default() };
    let store = cluster.store_with(name.parse().unwrap(), options);
    let backend = FakeBackend::new([192, 0, 2, last].into());
    let options = NodeOptions { seed: last.into(), ..NodeOptions::default() };
    let node = Node::from_parts(Arc::new(store), Arc::new(backend), options);
    let handle = node.handle();
    let run = tokio::spawn(async move {
        panic!("a node ended: {:?}", node.run().await);
    });
    (run, handle)
}

fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some([192, 0, 2, last].into()), ..LeaseAttrs::default() }
}

async fn ready(handle: &mut NodeHandle) -> flannel_core::Lease {
    handle.wait_for(Status::is_ready).await.unwrap().lease.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_clone_is_told_and_disturbs_nobody() {
    let cluster = cluster();
    let (_first, mut handle) = start(&cluster, "worker", 1);
    let lease = ready(&mut handle).await;
    let (_clone, clone) = start(&cluster, "worker", 2);
    let until = Instant::now() + Duration::from_secs(600);
    while Instant::now() < until {
        sleep(Duration::from_millis(100)).await;
        let status = handle.status();
        assert!(status.is_ready() && status.faults.is_empty(), "{status:?}");
        assert_eq!(status.lease.as_ref(), Some(&lease));
        let stored = cluster.records().remove(0).lease().unwrap();
        assert_eq!(stored.attrs, lease.attrs);
    }
    let status = clone.status();
    assert_eq!(
        status.fault(Activity::Acquire).unwrap().reason,
        "another node at 192.0.2.1 is called worker as well, give one of them another name"
    );
    assert_eq!(cluster.records().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_address_changed_while_it_was_down_has_its_subnet_after_a_moment() {
    let cluster = cluster();
    let (first, mut handle) = start(&cluster, "worker", 1);
    let lease = ready(&mut handle).await;
    first.abort();
    let restarted = Instant::now();
    let (_second, mut handle) = start(&cluster, "worker", 2);
    let again = ready(&mut handle).await;
    assert_eq!(again.subnet, lease.subnet);
    assert_eq!(again.attrs.public_ip, Some([192, 0, 2, 2].into()));
    assert!(restarted.elapsed() < Duration::from_secs(4), "{:?}", restarted.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_clone_takes_over_when_the_first_is_gone_and_then_the_first_is_told() {
    let cluster = cluster();
    let (first, mut handle) = start(&cluster, "worker", 1);
    let subnet = ready(&mut handle).await.subnet;
    let (_clone, mut clone) = start(&cluster, "worker", 2);
    sleep(Duration::from_secs(60)).await;
    assert!(clone.status().lease.is_none());
    first.abort();
    assert_eq!(ready(&mut clone).await.subnet, subnet);
    let (_first, handle) = start(&cluster, "worker", 1);
    sleep(Duration::from_secs(60)).await;
    assert!(clone.status().is_ready());
    assert!(reason(&handle.status()).contains("at 192.0.2.2 is called worker"));
}

#[tokio::test(start_paused = true)]
async fn who_was_cut_off_while_its_name_was_used_does_not_fight_for_it() {
    let cluster = cluster();
    let (_first, mut handle) = start(&cluster, "worker", 1);
    let subnet = ready(&mut handle).await.subnet;
    // Both are cut off and healed by name.
    cluster.cut(&"worker".parse().unwrap(), Cut::Fail);
    sleep(Duration::from_secs(1)).await;
    let other = cluster.registry("operator".parse().unwrap());
    let store = flannel_store::RegistryStore::new(
        other,
        "worker".parse().unwrap(),
        LeaseOptions::default(),
    );
    let attrs = at(2);
    let mut taken = store.acquire(&attrs).await.unwrap();
    assert_eq!(taken.lease().subnet, subnet);
    cluster.heal(&"worker".parse().unwrap());
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        taken.renew().await.unwrap();
    }
    let status = handle.status();
    assert!(reason(&status).contains("at 192.0.2.2 is called worker"), "{status:?}");
}

/// A store without a node, whose holder does not answer.
async fn acquired(
    cluster: &FaultyCluster,
    name: &str,
    last: u8,
    hint: Option<Subnet>,
) -> (Result<Subnet, StoreError>, Duration) {
    let asked = Instant::now();
    let options = LeaseOptions { hint, ..LeaseOptions::default() };
    let store = cluster.store_with(name.parse().unwrap(), options);
    let lease = store.acquire(&at(last)).await;
    (lease.map(|lease| lease.lease().subnet), asked.elapsed())
}

const QUESTION: Duration = Duration::from_secs(3);

#[tokio::test(start_paused = true)]
async fn a_name_that_is_the_address_of_a_node_that_lives_is_refused() {
    let cluster = cluster();
    let (_first, mut handle) = start(&cluster, "192.0.2.1", 1);
    let lease = ready(&mut handle).await;
    for last in [1, 2] {
        let (refused, _) = acquired(&cluster, "192.0.2.1", last, None).await;
        let error = refused.unwrap_err().to_string();
        assert_eq!(
            error,
            "another node at 192.0.2.1 is called 192.0.2.1 as well, give one of them another name"
        );
        assert_eq!(cluster.records()[0].lease().unwrap().attrs, lease.attrs);
    }
    assert!(handle.status().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_goes_by_its_address_has_its_lease_again() {
    let cluster = cluster();
    let (first, _) = acquired(&cluster, "192.0.2.1", 1, None).await;
    let first = first.unwrap();
    let (again, took) = acquired(&cluster, "192.0.2.1", 1, Some(first)).await;
    assert_eq!(again.unwrap(), first);
    assert!(took < QUESTION, "its subnet.env says that it is ours: {took:?}");
    let (again, took) = acquired(&cluster, "192.0.2.1", 1, None).await;
    assert_eq!(again.unwrap(), first);
    assert!(took >= QUESTION, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_name_has_its_subnet_again_unless_somebody_answers() {
    let cluster = cluster();
    let (first, _) = acquired(&cluster, "one", 1, None).await;
    let first = first.unwrap();
    let (again, took) = acquired(&cluster, "two", 1, Some(first)).await;
    assert_eq!(again.unwrap(), first);
    assert!(took < QUESTION, "{took:?}");
    let (again, took) = acquired(&cluster, "three", 1, None).await;
    assert_eq!(again.unwrap(), first);
    assert!(took >= QUESTION, "{took:?}");
    assert_eq!(cluster.records().len(), 1);

    let (_node, mut handle) = start(&cluster, "three", 1);
    ready(&mut handle).await;
    let (other, _) = acquired(&cluster, "four", 1, None).await;
    assert_ne!(other.unwrap(), first);
    assert!(handle.status().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_reservation_survives_the_loss_of_a_name() {
    let cluster = cluster();
    let write = NewRecord { value: at(7).to_string(), owner: None, ttl: None };
    cluster.put("10.3.77.0-24", &write);
    for name in ["one", "two"] {
        let (subnet, _) = acquired(&cluster, name, 7, None).await;
        assert_eq!(subnet.unwrap().to_string(), "10.3.77.0-24");
        assert_eq!(cluster.records()[0].lifetime, Lifetime::Unbounded);
    }
}

#[tokio::test(start_paused = true)]
async fn two_processes_with_one_name_and_one_address_write_no_more_than_once_a_second() {
    let cluster = cluster();
    let (_one, mut handle) = start(&cluster, "worker", 1);
    ready(&mut handle).await;
    let (_two, mut handle) = start(&cluster, "worker", 1);
    ready(&mut handle).await;
    let revision = || cluster.records()[0].revision;
    let before = revision();
    sleep(Duration::from_secs(60)).await;
    assert!(revision() - before <= 130, "{} writes in a minute", revision() - before);
}

/// Why no lease can be acquired.
fn reason(status: &Status) -> &str {
    &status.fault(Activity::Acquire).unwrap().reason
}
