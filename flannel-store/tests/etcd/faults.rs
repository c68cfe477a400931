//! What breaks, and how a node comes through it.

use std::{collections::BTreeMap, time::Duration};

use flannel_core::{LeaseEvent, Store, StoreError};
use flannel_store::{EtcdConfig, EtcdRegistry, EtcdStore, LeaseOptions, Registry, RegistryError};
use futures::{StreamExt, future::join_all};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use crate::{
    cluster::{Cluster, PREFIX, Security},
    flannel::{LIMIT, acquire, at, item, network},
    watcher::{Watcher, until_known},
};

/// The shortest TTL that these members grant.
const TTL: Duration = Duration::from_secs(1);

fn short() -> LeaseOptions {
    LeaseOptions { ttl: TTL, ..LeaseOptions::default() }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_lease_ends_with_its_ttl_and_not_before() {
    let cluster = network(1).await;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    let mut lease = acquire(&cluster.store_with("n1", short()), 1).await;
    item(&mut watch).await.unwrap();
    let until = Instant::now() + 3 * TTL;
    while Instant::now() < until {
        lease.renew().await.unwrap();
        sleep(TTL / 4).await;
    }
    let renewed = Instant::now();
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(lease.lease().subnet));
    // etcd looks for ended leases every half second.
    println!("the lease ended {:?} after it was renewed for {TTL:?}", renewed.elapsed());
    assert!(renewed.elapsed() > TTL / 2 && renewed.elapsed() < 4 * TTL);
    let lost = lease.renew().await.unwrap_err();
    assert!(matches!(lost, StoreError::Revoked { owner: None, .. }), "{lost:?}");
    let again = acquire(&cluster.store_with("n1", short()), 1).await;
    assert_eq!(again.lease().subnet, lease.lease().subnet);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn etcd_killed_for_longer_than_the_ttl_changes_nothing() {
    let mut cluster = network(1).await;
    let store = cluster.store_with("n1", short());
    let mut lease = acquire(&store, 1).await;
    let subnet = lease.lease().subnet;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    cluster.kill(0);
    let killed = Instant::now();
    let mut failures = 0;
    while killed.elapsed() < 3 * TTL {
        let error = lease.renew().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        failures += 1;
        sleep(TTL / 4).await;
    }
    item(&mut watch).await.unwrap_err();
    cluster.start_member(0);
    let started = Instant::now();
    let lease = loop {
        match lease.renew().await {
            Ok(()) => break lease,
            Err(StoreError::Revoked { .. }) => break acquire(&store, 1).await,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    };
    println!(
        "{failures} renewals failed; the lease was held again {:?} after the start",
        started.elapsed()
    );
    assert_eq!(lease.lease().subnet, subnet);
    let events = until_known(&mut watch, lease.lease()).await;
    println!("a watcher knew it after {:?}, and {} events", started.elapsed(), events.len());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn etcd_that_lost_its_data_gives_the_same_subnet() {
    let mut cluster = network(1).await;
    let store = cluster.store("n1");
    for _ in 0..10 {
        cluster.put("/elsewhere", "so that the revisions before were greater");
    }
    let mut lease = acquire(&store, 1).await;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    cluster.kill(0);
    std::fs::remove_dir_all(cluster.path("data0")).unwrap();
    cluster.start_member(0);
    cluster.is_healthy().await;
    let lost = loop {
        match lease.renew().await {
            Err(StoreError::Unavailable { .. }) => sleep(Duration::from_millis(20)).await,
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(lost, StoreError::Revoked { owner: None, .. }), "{lost:?}");
    let missing = store.acquire(&at(1)).await.unwrap_err();
    assert!(matches!(missing, StoreError::ConfigMissing { .. }), "{missing:?}");
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    let again = acquire(&store, 1).await;
    assert_eq!(again.lease().subnet, lease.lease().subnet);
    until_known(&mut watch, again.lease()).await;
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_member_that_hangs_is_left_even_by_watches() {
    let cluster = network(3).await;
    let (mut leases, mut watchers) = (Vec::new(), Vec::new());
    for n in 0..6 {
        leases.push(acquire(&cluster.store(&format!("n{n}")), n).await);
        watchers.push(Watcher::follow(&cluster.store("watcher"), &cluster).await);
    }
    cluster.stop(0);
    let stopped = Instant::now();
    let renewals = async {
        for renewed in join_all(leases.iter_mut().map(|lease| lease.renew())).await {
            renewed.unwrap();
        }
        println!("6 nodes had renewed after {:?}", stopped.elapsed());
        assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    };
    let is_there = |known: &BTreeMap<_, _>| known.values().any(|attrs| *attrs == at(7));
    let watches = async {
        join_all(watchers.iter_mut().map(|watcher| watcher.until(is_there))).await;
        println!("6 watches knew of a change after {:?}", stopped.elapsed());
        assert!(stopped.elapsed() < Duration::from_secs(13), "{:?}", stopped.elapsed());
    };
    // Not by etcdctl, which would keep this thread from noticing anything.
    let store = cluster.store("n7");
    tokio::join!(renewals, watches, acquire(&store, 7));
    for error in watchers.iter().flat_map(|watcher| &watcher.errors) {
        println!("{error}");
    }
    cluster.go_on(0);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_watch_behind_a_compaction_begins_anew() {
    let cluster = network(1).await;
    let registry = EtcdRegistry::new(&cluster.config()).unwrap();
    let lease = acquire(&cluster.store("n1"), 1).await;
    let before = registry.list().await.unwrap();
    let subnet = lease.lease().subnet;
    lease.release().await.unwrap();
    let revision = before.revision;
    let mut early = registry.watch(before.clone());
    let change = timeout(LIMIT, early.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(change, flannel_store::Change::Delete(subnet.to_string()));

    acquire(&cluster.store("n2"), 2).await;
    cluster.compact();
    let mut late = registry.watch(before);
    let lost = timeout(LIMIT, late.next()).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(lost, RegistryError::Compacted { revision: r } if r == revision), "{lost:?}");
    assert!(late.next().await.is_none());
    assert!(matches!(early.next().await, Some(Ok(_))), "who has kept up goes on");
    // Such as when the data of etcd were replaced by older ones.
    let future = flannel_store::Snapshot { records: vec![], revision: 1_000_000 };
    let behind = timeout(LIMIT, registry.watch(future).next()).await.unwrap().unwrap();
    assert!(matches!(behind, Err(RegistryError::Unavailable { .. })), "{behind:?}");
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_watch_that_was_away_during_a_compaction_misses_nothing() {
    let mut cluster = network(3).await;
    let leaving = acquire(&cluster.store("leaving"), 1).await;
    let mut changing = acquire(&cluster.store("changing"), 2).await;
    let mut watchers = Vec::new();
    // Each on one member.
    for endpoint in cluster.config().endpoints {
        let config = EtcdConfig { endpoints: vec![endpoint], ..cluster.config() };
        let store = EtcdStore::open(&config, "watcher".parse().unwrap(), LeaseOptions::default());
        watchers.push(Watcher::follow(&store.unwrap(), &cluster).await);
    }
    for (member, watcher) in watchers.iter_mut().enumerate() {
        match member {
            0 => cluster.kill(0),
            _ => cluster.stop(member),
        }
        changing.publish(&at(10 + u8::try_from(member).unwrap())).await.unwrap();
        cluster.put(&Cluster::lease_key(format!("10.3.{member}.0-24")), &at(20).to_string());
        cluster.compact();
        match member {
            0 => cluster.start_member(0),
            _ => cluster.go_on(member),
        }
        watcher.until_true(&cluster).await;
    }
    leaving.release().await.unwrap();
    for watcher in &mut watchers {
        watcher.until_true(&cluster).await;
        println!("{:?}", watcher.errors);
    }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_leader_that_moves_costs_nothing() {
    let cluster = network(3).await;
    let mut lease =
        acquire(&cluster.store_with("n1", LeaseOptions { ttl: 20 * TTL, ..short() }), 1).await;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    for n in 0..3 {
        let moved = Instant::now();
        cluster.move_leader();
        timeout(LIMIT, lease.renew()).await.unwrap().unwrap();
        let published = lease.publish(&at(10 + n)).await;
        published.unwrap();
        until_known(&mut watch, lease.lease()).await;
        println!("{:?} from moving the leader to being seen", moved.elapsed());
    }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_leader_that_dies_is_survived() {
    let mut cluster = network(3).await;
    let mut lease = acquire(&cluster.store("n1"), 1).await;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    for member in 0..3 {
        cluster.kill(member);
        let killed = Instant::now();
        loop {
            match lease.publish(&at(20 + u8::try_from(member).unwrap())).await {
                Ok(()) => break,
                Err(StoreError::Unavailable { .. }) if killed.elapsed() < LIMIT => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        println!("published {:?} after member {member} was killed", killed.elapsed());
        until_known(&mut watch, lease.lease()).await;
        println!("seen {:?} after it", killed.elapsed());
        cluster.start_member(member);
        cluster.is_healthy().await;
    }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_cluster_without_quorum_is_waited_for() {
    let mut cluster = network(3).await;
    let mut lease = acquire(&cluster.store("n1"), 1).await;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    cluster.kill(0);
    cluster.kill(1);
    let killed = Instant::now();
    let error = timeout(LIMIT, lease.renew()).await.expect("a call ends").unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    println!("a renewal failed after {:?}: {}", killed.elapsed(), chain(&error));
    // The watch is told that its member has no leader.
    let error = item(&mut watch).await.unwrap_err();
    println!("a watch failed after {:?}: {}", killed.elapsed(), chain(&error));
    cluster.start_member(0);
    let started = Instant::now();
    while lease.renew().await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
    println!("a renewal succeeded {:?} after one member came back", started.elapsed());
    lease.publish(&at(2)).await.unwrap();
    until_known(&mut watch, lease.lease()).await;
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_lease_revoked_by_hand_is_taken_again() {
    let cluster = network(1).await;
    let store = cluster.store("n1");
    let mut lease = acquire(&store, 1).await;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    let etcd_lease = cluster.kvs(&Cluster::lease_key(lease.lease().subnet))[0].lease;
    cluster.ctl(&["lease", "revoke", &format!("{etcd_lease:x}")]);
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(lease.lease().subnet));
    let lost = lease.renew().await.unwrap_err();
    assert!(matches!(lost, StoreError::Revoked { owner: None, .. }), "{lost:?}");
    let again = acquire(&store, 1).await;
    assert_eq!(again.lease().subnet, lease.lease().subnet);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_lease_replaced_by_garbage_is_not_written_over() {
    let cluster = network(1).await;
    let store = cluster.store("n1");
    let mut lease = acquire(&store, 1).await;
    let subnet = lease.lease().subnet;
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    cluster.put(&Cluster::lease_key(subnet), "garbage");
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet));
    let lost = lease.renew().await.unwrap_err();
    assert!(matches!(lost, StoreError::Revoked { owner: None, .. }), "{lost:?}");
    let other = acquire(&store, 1).await;
    assert_ne!(other.lease().subnet, subnet);
    assert_eq!(cluster.kvs(&Cluster::lease_key(subnet))[0].value, "garbage");
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn dead_and_mute_endpoints_are_passed_over() {
    let cluster = network(1).await;
    // Connections are taken by the kernel, and nobody ever answers.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = format!("http://{}", mute.local_addr().unwrap());
    let all = vec!["http://127.0.0.1:1".into(), mute, cluster.endpoint(0)];
    let config = EtcdConfig { endpoints: all, ..cluster.config() };
    // Whichever it begins with.
    let begin = Instant::now();
    let acquired = (0..8u8).map(|n| {
        let store =
            EtcdStore::open(&config, format!("n{n}").parse().unwrap(), LeaseOptions::default());
        async move {
            acquire(&store.unwrap(), n).await;
            begin.elapsed()
        }
    });
    let longest = join_all(acquired).await.into_iter().max().unwrap();
    println!("the slowest of 8 nodes had its lease after {longest:?}");
    assert!(longest < Duration::from_secs(4), "{longest:?}");
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_login_that_etcd_forgot_is_renewed() {
    let mut cluster = Cluster::start(1, Security::Passwords).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    let store = cluster.store("n1");
    let mut lease = acquire(&store, 1).await;
    let other = cluster.store("n2");
    let mut watch = other.watch();
    item(&mut watch).await.unwrap();
    for _ in 0..2 {
        // A token lives in the memory of the member.
        cluster.kill(0);
        cluster.start_member(0);
        cluster.is_healthy().await;
        lease.renew().await.unwrap();
        until_known(&mut watch, lease.lease()).await;
    }
    // A password that is set ends all logins. A watch is not told that it is so, only that it is not permitted.
    let registry = EtcdRegistry::new(&cluster.config()).unwrap();
    let snapshot = registry.list().await.unwrap();
    cluster.ctl_with(&["user", "passwd", "flannel", "--interactive=false"], "hunter2\n");
    let mut changes = registry.watch(snapshot);
    lease.publish(&at(2)).await.unwrap();
    let change = timeout(LIMIT, changes.next()).await.unwrap();
    assert!(matches!(change, Some(Ok(flannel_store::Change::Put(_)))), "{change:?}");
    until_known(&mut watch, lease.lease()).await;
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn renewed_certificates_are_used_from_the_next_connection_on() {
    let mut cluster = Cluster::start(1, Security::Certificates).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    let store = cluster.store("n1");
    let mut lease = acquire(&store, 1).await;
    let mut watch = store.watch();
    item(&mut watch).await.unwrap();
    cluster.write_certificates();
    cluster.kill(0);
    cluster.start_member(0);
    // Nobody can read the health of a member whose clients need certificates, except with them.
    cluster.is_healthy().await;
    lease.renew().await.unwrap();
    lease.publish(&at(2)).await.unwrap();
    until_known(&mut watch, lease.lease()).await;
}

/// An error with its reasons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {}", chain(source)));
    error.to_string() + &source.unwrap_or_default()
}
