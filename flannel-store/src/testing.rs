//! The contract of a [`Registry`] as tests that every engine runs, and a cluster with faults.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use flannel_core::{LeaseAttrs, testing::polled};
use futures::{StreamExt, future::join_all};
use tokio::time::{Instant, sleep, timeout};

use crate::registry::{Change, Lifetime, NewRecord, Record, Registry, RegistryError};

mod faulty_cluster;

pub use faulty_cluster::{Cut, FaultyCluster, FaultyRegistry};

/// A fresh engine, and nodes that are connected to it.
#[expect(async_fn_in_trait, reason = "each test drives it on its own thread")]
pub trait RegistryFixture: Sized {
    /// An empty engine with the network configuration `config`.
    async fn build(config: &str) -> Self;

    /// The engine as the node `node` is connected to it.
    async fn registry(&self, node: &str) -> impl Registry;
}

/// Expands to one test for each clause of [`Registry`], on the [`RegistryFixture`] that is named. `real_time` where the engine is
/// not in this process's memory; attributes before it are those of each test.
#[macro_export]
macro_rules! registry_conformance {
    ($(#[$attribute:meta])* $fixture:ty) => {
        $crate::registry_conformance!(@all [$(#[$attribute])* #[tokio::test(start_paused = true)]] $fixture);
    };
    ($(#[$attribute:meta])* $fixture:ty, real_time) => {
        $crate::registry_conformance!(@all [$(#[$attribute])* #[tokio::test]] $fixture);
    };
    (@all $attributes:tt $fixture:ty) => {
        $crate::registry_conformance!(@each $attributes $fixture:
            a_record_expires_and_its_addresses_are_free
            a_record_is_created_once_and_shown
            a_renewal_lasts_and_disturbs_nobody
            dropping_a_call_writes_all_or_nothing
            of_creates_that_race_for_an_address_one_succeeds
            records_share_no_address
            what_somebody_changed_is_not_written_over
        );
    };
    (@each $attributes:tt $fixture:ty: $($clause:ident)+) => {
        $($crate::registry_conformance!(@one $attributes $fixture, $clause);)+
    };
    (@one [$($attributes:tt)*] $fixture:ty, $clause:ident) => {
        $($attributes)*
        async fn $clause() {
            $crate::testing::$clause::<$fixture>().await;
        }
    };
}

/// After its time a record is gone or lapsed, watchers are told that it was deleted, and its addresses can be had.
pub async fn a_record_expires_and_its_addresses_are_free<F: RegistryFixture>() {
    let (fixture, began) = (F::build(CONFIG).await, Instant::now());
    let registry = fixture.registry("n1").await;
    let mut changes = registry.watch(registry.list().await.unwrap());
    registry.create(KEY, &new(1, Some(TTL))).await.unwrap();
    let put = timeout(PATIENCE, changes.next()).await.expect("in time");
    assert!(matches!(&put, Some(Ok(Change::Put(record))) if record.key == KEY), "{put:?}");
    let other = fixture.registry("n2").await;
    let came_later = other.watch(other.list().await.unwrap());
    for mut changes in [changes, came_later] {
        let delete = timeout(PATIENCE, changes.next()).await.expect("in time");
        assert!(matches!(&delete, Some(Ok(Change::Delete(key))) if key == KEY), "{delete:?}");
        assert!(began.elapsed() >= TTL, "{:?}", began.elapsed());
    }
    assert_eq!(live(&registry).await, []);
    let taken = other.create(OVERLAPPING[0], &new(2, None)).await.unwrap();
    assert_eq!(live(&registry).await, [taken]);
}

/// A record is listed as it was created, and a second one with its key is refused with the first.
pub async fn a_record_is_created_once_and_shown<F: RegistryFixture>() {
    let fixture = F::build(CONFIG).await;
    let (one, other) = (fixture.registry("n1").await, fixture.registry("n2").await);
    for (key, ttl) in [(KEY, None), ("10.3.9.0-24", Some(LONG))] {
        let created = one.create(key, &new(1, ttl)).await.unwrap();
        let lifetime = ttl.map_or(Lifetime::Unbounded, |_| Lifetime::Bounded);
        assert_eq!((&*created.key, created.lifetime), (key, lifetime));
        assert_eq!(created.value.as_ref(), Ok(&new(1, ttl).value));
        assert_eq!(created.owner, new(1, ttl).owner);
        assert_eq!(conflict(other.create(key, &new(2, ttl)).await), Some(created.clone()));
        assert!(live(&other).await.contains(&created));
        let updated = one.update(&created, &new(3, ttl)).await.unwrap();
        assert!(updated.revision > created.revision && updated.created <= updated.revision);
        one.delete(&updated).await.unwrap();
        assert_eq!(live(&other).await, []);
    }
}

/// A record that is renewed lasts, keeps its revision, and watchers see nothing.
pub async fn a_renewal_lasts_and_disturbs_nobody<F: RegistryFixture>() {
    let fixture = F::build(CONFIG).await;
    let registry = fixture.registry("n1").await;
    let record = registry.create(KEY, &new(1, Some(TTL))).await.unwrap();
    let mut changes = registry.watch(registry.list().await.unwrap());
    let until = Instant::now() + 2 * TTL;
    while Instant::now() < until {
        let renewed = registry.touch(&record, Some(TTL)).await.unwrap();
        assert_eq!((renewed.revision, &renewed.value), (record.revision, &record.value));
        let seen = timeout(TTL / 4, changes.next()).await;
        assert!(seen.is_err(), "{seen:?}");
    }
    assert_eq!(live(&registry).await, [record]);
}

/// Wherever a call is dropped, the record is as before or as asked for.
pub async fn dropping_a_call_writes_all_or_nothing<F: RegistryFixture>() {
    let fixture = F::build(CONFIG).await;
    let (registry, reader) = (fixture.registry("n1").await, fixture.registry("n2").await);
    for polls in 0.. {
        assert!(polls < 1000, "calls do not end");
        let (first, second) = (new(1, Some(LONG)), new(2, Some(LONG)));
        let created = polled(registry.create(KEY, &first), polls).await;
        let whole = |record: &Record| {
            (record.value == Ok(first.value.clone()) && record.owner == first.owner)
                || (record.value == Ok(second.value.clone()) && record.owner == second.owner)
        };
        let Some(record) = settled(&reader, whole).await else { continue };
        let updated = polled(registry.update(&record, &second), polls).await;
        let record = settled(&reader, whole).await.expect("nobody deleted it");
        let deleted = polled(registry.delete(&record), polls).await;
        if let Some(record) = settled(&reader, whole).await {
            // It may be deleted a little later.
            let _ = registry.delete(&record).await;
        }
        if created.is_some() && updated.is_some() && deleted.is_some() {
            return;
        }
    }
}

/// Of nodes that create overlapping records at the same time one has its own, and nothing else is left.
pub async fn of_creates_that_race_for_an_address_one_succeeds<F: RegistryFixture>() {
    let fixture = F::build(CONFIG).await;
    let mut registries = Vec::new();
    for n in 0..OVERLAPPING.len() {
        registries.push(fixture.registry(&format!("n{n}")).await);
    }
    let write = new(1, Some(LONG));
    // All of them share an address with each other.
    let keys = ["10.3.1.0-24", "10.3.0.0-23", "10.3.1.0-25", "10.3.1.0-24&fd00:0:0:9::-64"];
    let creates = registries.iter().zip(keys).map(|(registry, key)| registry.create(key, &write));
    let created: Vec<Record> = join_all(creates).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(created.len(), 1, "{created:?}");
    assert_eq!(live(&registries[0]).await, created);
}

/// A record that shares an address with a live one is refused with that, whatever its key; nothing is written.
pub async fn records_share_no_address<F: RegistryFixture>() {
    let fixture = F::build(CONFIG).await;
    let (one, other) = (fixture.registry("n1").await, fixture.registry("n2").await);
    let record = one.create(KEY, &new(1, Some(LONG))).await.unwrap();
    for key in OVERLAPPING {
        let current = conflict(other.create(key, &new(2, Some(LONG))).await);
        assert_eq!(current.map(|current| current.key).as_deref(), Some(KEY), "{key}");
    }
    assert_eq!(live(&one).await, [record]);
    other.create("10.3.2.0-24&fd00:0:0:2::-64", &new(2, Some(LONG))).await.unwrap();
}

/// Updating, renewing and deleting what is not as it was is refused with what is there, and changes nothing.
pub async fn what_somebody_changed_is_not_written_over<F: RegistryFixture>() {
    let fixture = F::build(CONFIG).await;
    let (one, other) = (fixture.registry("n1").await, fixture.registry("n2").await);
    let stale = one.create(KEY, &new(1, Some(LONG))).await.unwrap();
    let current = other.update(&stale, &new(2, Some(LONG))).await.unwrap();
    assert_eq!(conflict(one.update(&stale, &new(3, None)).await), Some(current.clone()));
    assert_eq!(conflict(one.touch(&stale, Some(TTL)).await), Some(current.clone()));
    assert_eq!(conflict(one.delete(&stale).await), Some(current.clone()));
    assert_eq!(live(&one).await, std::slice::from_ref(&current));
    other.delete(&current).await.unwrap();
    assert_eq!(conflict(one.update(&stale, &new(3, None)).await), None);
    assert_eq!(live(&one).await, []);
}

async fn live(registry: &impl Registry) -> Vec<Record> {
    let mut records = registry.list().await.unwrap().records;
    records.retain(|record| record.lifetime != Lifetime::Lapsed);
    let keys: BTreeSet<_> = records.iter().map(|record| &record.key).collect();
    assert_eq!(keys.len(), records.len(), "each record once");
    records
}

/// What is at [`KEY`] once nothing that was dropped goes on, which must be `valid`.
async fn settled(registry: &impl Registry, valid: impl Fn(&Record) -> bool) -> Option<Record> {
    sleep(Duration::from_millis(20)).await;
    let record = live(registry).await.into_iter().next();
    assert!(record.as_ref().is_none_or(valid), "{record:?}");
    record
}

/// What is there instead.
fn conflict<T: std::fmt::Debug>(result: Result<T, RegistryError>) -> Option<Record> {
    match result {
        Err(RegistryError::Conflict { current }) => current.map(|current| *current),
        result => panic!("expected a conflict, got {result:?}"),
    }
}

fn new(last: u8, ttl: Option<Duration>) -> NewRecord {
    let public_ip = Some(Ipv4Addr::new(192, 0, 2, last));
    let value = LeaseAttrs { public_ip, ..LeaseAttrs::default() }.to_string();
    NewRecord { value, owner: format!("n{last}").parse().ok(), ttl }
}

const CONFIG: &str = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;

const KEY: &str = "10.3.1.0-24&fd00:0:0:1::-64";

/// Each shares an address with [`KEY`].
const OVERLAPPING: [&str; 4] =
    ["10.3.1.0-24", "10.3.0.0-23", "10.3.1.128-25", "10.3.2.0-24&fd00:0:0:1::-64"];

/// The shortest that etcd grants, nearly.
const TTL: Duration = Duration::from_secs(2);

const LONG: Duration = Duration::from_secs(3600);

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
