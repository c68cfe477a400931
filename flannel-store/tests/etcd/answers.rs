//! Answers that are lost, late, or very long.

use std::time::Duration;

use flannel_core::{LeaseEvent, Store};
use flannel_store::{
    Change, EtcdConfig, EtcdRegistry, Lifetime, NewRecord, Record, Registry, RegistryError,
};
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use crate::{
    cluster::{Cluster, PREFIX},
    flannel::{LIMIT, acquire, at, item, network},
    proxy::Proxy,
};

fn write(owner: Option<&str>, last: u8, ttl: Option<u64>) -> NewRecord {
    NewRecord {
        value: at(last).to_string(),
        owner: owner.map(|owner| owner.parse().unwrap()),
        ttl: ttl.map(Duration::from_secs),
    }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_lost_answer_is_not_a_lost_lease() {
    let cluster = network(1).await;
    let proxy = Proxy::start(&cluster.endpoint(0)).await;
    let config = EtcdConfig { endpoints: vec![proxy.endpoint.clone()], ..cluster.config() };
    let mut lost = 0;
    for after in 0.. {
        let registry = EtcdRegistry::new(&config).unwrap();
        registry.list().await.unwrap();
        let key = format!("10.3.{}.0-24", after + 1);
        let records = async || registry.list().await.unwrap().records;
        let before = lost;

        let was = registry.config().await.unwrap();
        let text = format!(r#"{{"Network":"10.3.0.0/16","SubnetLen":{}}}"#, 18 + after % 10);
        proxy.lose_after(after);
        registry.set_config(&was, &text).await.unwrap();
        lost += u32::from(proxy.has_lost());
        assert_eq!(registry.config().await.unwrap().text, Some(text), "set_config, {after}");

        proxy.lose_after(after);
        let created = registry.create(&key, &write(Some("n1"), 1, Some(3600))).await.unwrap();
        lost += u32::from(proxy.has_lost());
        assert_eq!(records().await, std::slice::from_ref(&created), "create, {after}");
        assert_eq!(created.lifetime, Lifetime::Bounded);

        proxy.lose_after(after);
        let updated = registry.update(&created, &write(Some("n1"), 2, Some(3600))).await.unwrap();
        lost += u32::from(proxy.has_lost());
        assert_eq!(records().await, std::slice::from_ref(&updated), "update, {after}");
        assert_eq!(updated.token, created.token, "it keeps its etcd lease");

        proxy.lose_after(after);
        let longer = registry.update(&updated, &write(Some("n1"), 3, Some(7200))).await.unwrap();
        lost += u32::from(proxy.has_lost());
        assert_eq!(
            records().await,
            std::slice::from_ref(&longer),
            "update with another TTL, {after}"
        );
        assert_ne!(longer.token, created.token);

        proxy.lose_after(after);
        let ttl = Some(Duration::from_secs(7200));
        assert_eq!(registry.touch(&longer, ttl).await.unwrap(), longer, "touch, {after}");
        lost += u32::from(proxy.has_lost());

        proxy.lose_after(after);
        registry.delete(&longer).await.unwrap();
        lost += u32::from(proxy.has_lost());
        assert_eq!(records().await, [], "delete, {after}");
        if lost == before {
            break;
        }
    }
    println!("{lost} answers were lost");
    assert!(lost > 10, "{lost}");
    // Only etcd leases of which nobody learned are left, and they hold nothing.
    let left = cluster.ctl(&["lease", "list"]).lines().count() - 1;
    println!("{left} etcd leases are left to end by themselves");
    assert!(left < usize::try_from(lost).unwrap());
    assert_eq!(cluster.kvs(&format!("{PREFIX}/s")), []);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn the_owner_is_a_part_of_a_record() {
    let cluster = network(1).await;
    let registry = EtcdRegistry::new(&cluster.config()).unwrap();
    let key = "10.3.7.0-24";
    let write = |last| write(Some("n1"), last, Some(3600));
    let current = |error: RegistryError| match error {
        RegistryError::Conflict { current } => current.map(|record| *record),
        error => panic!("{error:?}"),
    };
    let second = registry.create(key, &write(2)).await.unwrap();
    // Its owner is part of a record.
    cluster.put(&format!("{PREFIX}/subnet-owners/{key}"), "n2");
    let orphan = Record { owner: None, ..second.clone() };
    assert_eq!(
        current(registry.update(&second, &write(3)).await.unwrap_err()),
        Some(orphan.clone())
    );
    assert_eq!(current(registry.delete(&second).await.unwrap_err()), Some(orphan.clone()));
    let third = registry.update(&orphan, &write(3)).await.unwrap();
    registry.delete(&third).await.unwrap();
    assert_eq!(cluster.kvs(&format!("{PREFIX}/s")), []);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn values_of_megabytes_cost_only_themselves() {
    let cluster = network(1).await;
    let store = cluster.store("n1");
    let mut watch = store.watch();
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Reset(vec![]));
    let registry = EtcdRegistry::new(&cluster.config()).unwrap();
    let mut changes = registry.watch(registry.list().await.unwrap());
    // Twelve are more than one answer may have, and more than etcd sends in one piece.
    let huge = "x".repeat(1_500_000);
    for n in 0..12 {
        cluster.put(&Cluster::lease_key(format!("10.3.{}.0-24", n + 1)), &huge);
    }
    for n in 0..12 {
        let change = timeout(LIMIT, changes.next()).await.unwrap().unwrap().unwrap();
        let Change::Put(record) = change else {
            panic!("{change:?}");
        };
        assert_eq!(record.key, format!("10.3.{}.0-24", n + 1));
        assert_eq!(record.value, Err("it has 1500000 bytes, expected at most 65536".into()));
    }
    let snapshot = registry.list().await.unwrap();
    assert_eq!(snapshot.records.len(), 12);
    assert!(snapshot.records.iter().all(|record| record.value.is_err()));
    let lease = acquire(&store, 1).await;
    assert!(snapshot.records.iter().all(|r| r.subnet() != Some(lease.lease().subnet)));
    for n in 0..12 {
        let subnet = format!("10.3.{}.0-24", n + 1).parse().unwrap();
        assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet), "no lease");
    }
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::upsert(lease.lease().clone()));
    // A watch that begins before all of them is sent them in one go.
    let mut late = registry.watch(flannel_store::Snapshot { records: vec![], revision: 2 });
    for _ in 0..12 {
        timeout(LIMIT, late.next()).await.unwrap().unwrap().unwrap();
    }
}

/// Writes `count` leases of vxlan, as flannel does.
fn write_leases(cluster: &Cluster, count: u32) {
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.0.0.0/8"}"#);
    let value = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    let said = cluster.ctl(&["lease", "grant", "86400"]);
    let id = said.split(' ').nth(1).unwrap().to_owned();
    let quoted = value.replace('"', "\\\"");
    for batch in 0..count / 100 {
        let put = |n: u32| {
            format!(
                "put --lease={id} {PREFIX}/subnets/10.{}.{}.0-24 \"{quoted}\"\n",
                n / 250 + 1,
                n % 250
            )
        };
        let puts: String = (batch * 100..batch * 100 + 100).map(put).collect();
        cluster.ctl_with(&["txn"], &format!("\n{puts}\n\n"));
    }
}

/// 8,000 leases at 2 Mbit/s, or a quarter of both: a list takes longer than any one answer may, and gets there.
#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_long_list_comes_in_over_a_slow_line() {
    let cluster = network(1).await;
    write_leases(&cluster, 2000);
    let proxy = Proxy::start(&cluster.endpoint(0)).await;
    proxy.slow_down_to(500_000 / 8);
    let config = EtcdConfig { endpoints: vec![proxy.endpoint.clone()], ..cluster.config() };
    let registry = EtcdRegistry::new(&config).unwrap();
    let listing = Instant::now();
    let listed = timeout(4 * LIMIT, registry.list()).await.expect("in time").unwrap();
    println!("2,000 leases at 0.5 Mbit/s: {:?}", listing.elapsed());
    assert_eq!(listed.records.len(), 2000);
    assert!(listing.elapsed() > Duration::from_secs(5), "the line is not slow");
}
