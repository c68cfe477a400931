//! Answers that are lost, late, or very long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use flannel_core::{LeaseEvent, Store};
use flannel_store::{
    Change, EtcdConfig, EtcdRegistry, EtcdStore, LeaseOptions, Lifetime, NewRecord, Record,
    Registry, RegistryError,
};
use futures::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    cluster::{Cluster, PREFIX},
    flannel::{LIMIT, acquire, at, item, network},
};

/// A line to etcd that breaks when it is told to.
struct Proxy {
    endpoint: String,
    /// How many chunks of answers pass before one is lost with its line; nothing is lost if it is negative.
    left: Arc<AtomicI64>,
    _lines: JoinSet<()>,
}

impl Proxy {
    async fn start(target: &str) -> Self {
        let target = target.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let left = Arc::new(AtomicI64::new(-1));
        let (mut lines, shared) = (JoinSet::new(), Arc::clone(&left));
        lines.spawn(async move {
            let mut lines = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&target).await.unwrap();
                lines.spawn(pass(client, server, Arc::clone(&shared)));
            }
        });
        Self { endpoint, left, _lines: lines }
    }

    fn lose_after(&self, chunks: i64) {
        self.left.store(chunks, Ordering::Relaxed);
    }

    /// Whether what was to be lost has been.
    fn has_lost(&self) -> bool {
        self.left.swap(-1, Ordering::Relaxed) < 0
    }
}

async fn pass(client: TcpStream, server: TcpStream, left: Arc<AtomicI64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let answers = async {
        let mut chunk = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from_server.read(&mut chunk).await {
            // Only while something is to be lost, it is counted.
            if left.load(Ordering::Relaxed) >= 0 && left.fetch_sub(1, Ordering::Relaxed) == 0 {
                return;
            }
            if to_client.write_all(&chunk[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

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
async fn who_compares_with_something_else_is_told_what_is_there() {
    let cluster = network(1).await;
    let registry = EtcdRegistry::new(&cluster.config()).unwrap();
    let key = "10.3.7.0-24";
    let write = |last| write(Some("n1"), last, Some(3600));
    let current = |error: RegistryError| match error {
        RegistryError::Conflict { current } => current.map(|record| *record),
        error => panic!("{error:?}"),
    };
    let first = registry.create(key, &write(1)).await.unwrap();
    let again = registry.create(key, &write(1)).await.unwrap_err();
    assert_eq!(current(again), Some(first.clone()));
    let second = registry.update(&first, &write(2)).await.unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(
        current(registry.update(&first, &write(3)).await.unwrap_err()),
        Some(second.clone())
    );
    assert_eq!(current(registry.touch(&first, None).await.unwrap_err()), Some(second.clone()));
    assert_eq!(current(registry.delete(&first).await.unwrap_err()), Some(second.clone()));
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
    assert_eq!(current(registry.delete(&third).await.unwrap_err()), None);
    assert_eq!(current(registry.update(&third, &write(4)).await.unwrap_err()), None);
    assert_eq!(current(registry.touch(&third, Some(LIMIT)).await.unwrap_err()), None);
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
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Upsert(lease.lease().clone()));
    // A watch that begins before all of them is sent them in one go.
    let mut late = registry.watch(flannel_store::Snapshot { records: vec![], revision: 2 });
    for _ in 0..12 {
        timeout(LIMIT, late.next()).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn ten_thousand_leases_are_listed_at_once() {
    let cluster = network(1).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.0.0.0/8"}"#);
    let value = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    let said = cluster.ctl(&["lease", "grant", "86400"]);
    let id = said.split(' ').nth(1).unwrap().to_owned();
    let quoted = value.replace('"', "\\\"");
    for batch in 0..100 {
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
    let plain = Instant::now();
    let bytes = cluster.ctl(&["get", "--prefix", &format!("{PREFIX}/subnets/"), "-w", "json"]);
    let plain = plain.elapsed();
    let registry = EtcdRegistry::new(&cluster.config()).unwrap();
    registry.config().await.unwrap();
    let listing = Instant::now();
    let snapshot = registry.list().await.unwrap();
    println!(
        "10,000 leases: {:?}; with etcdctl {plain:?} and {} bytes",
        listing.elapsed(),
        bytes.len()
    );
    assert_eq!(snapshot.records.len(), 10_000);
    let all: std::collections::BTreeSet<_> = snapshot.records.iter().map(|r| &r.key).collect();
    assert_eq!(all.len(), 10_000);
    assert!(snapshot.records.iter().all(|r| r.lease().is_ok() && r.lifetime == Lifetime::Bounded));

    let store =
        EtcdStore::open(&cluster.config(), "n1".parse().unwrap(), LeaseOptions::default()).unwrap();
    let acquiring = Instant::now();
    let lease = acquire(&store, 1).await;
    println!("a lease among them: {:?}", acquiring.elapsed());
    assert!(!all.contains(&lease.lease().subnet.to_string()));
    assert!(acquiring.elapsed() < Duration::from_secs(5));
    let watching = Instant::now();
    let LeaseEvent::Reset(leases) = item(&mut store.watch()).await.unwrap() else {
        panic!("expected a reset");
    };
    println!("a watch's first list: {:?}", watching.elapsed());
    assert_eq!(leases.len(), 10_001);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn fifty_nodes_that_start_at_once_have_their_leases_soon() {
    let cluster = network(3).await;
    // As many nodes as subnets, so that many choose the same one.
    let config = r#"{"Network":"10.3.0.0/24","SubnetLen":30,"SubnetMin":"10.3.0.4","SubnetMax":"10.3.0.200"}"#;
    cluster.put(&format!("{PREFIX}/config"), config);
    let stores: Vec<_> = (0..50).map(|n| cluster.store(&format!("n{n}"))).collect();
    let begin = Instant::now();
    let leases = stores.iter().zip(0..).map(|(store, n)| acquire(store, n));
    let leases = futures::future::join_all(leases).await;
    let lost: u64 = stores.iter().map(|store| store.stats().races_lost).sum();
    println!("50 nodes on 3 members: {:?}, {lost} races lost", begin.elapsed());
    assert!(lost > 0, "nobody was too late");
    let subnets: std::collections::BTreeSet<_> = leases.iter().map(|l| l.lease().subnet).collect();
    assert_eq!(subnets.len(), 50);
    let granted = cluster.ctl(&["lease", "list"]).lines().count() - 1;
    assert_eq!(granted, 50, "who was too late gives the etcd lease back that it had for it");
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
}
