//! Clauses about following the leases of all nodes.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream::BoxStream};

use super::{ROOMY, StoreFixture, TINY, acquiring::acquire, at, soon};
use crate::{
    lease::{Lease, LeaseAttrs, LeaseEvent, MAX_LEASE_BYTES},
    store::StoreError,
    subnet::Subnet,
};

/// Renewing a lease is no event for anybody, and changes nothing that others read.
pub async fn a_renewal_disturbs_nobody<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let mut watch = fixture.store("n2").await.watch();
    assert_eq!(next(&mut watch).await, LeaseEvent::Reset(Vec::new()));
    let mut lease = acquire(&*fixture.store("n1").await, 1).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease.lease().clone()));
    let before = fixture.entries().await;
    for _ in 0..3 {
        soon("renew", lease.renew()).await.unwrap();
    }
    soon("publish what is published", lease.publish(&at(1))).await.unwrap();
    assert_eq!(fixture.entries().await, before);
    let other = acquire(&*fixture.store("n3").await, 3).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(other.lease().clone()));
    let subnet = other.lease().subnet;
    soon("release", other.release()).await.unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet));
}

/// A new lease, other attributes and a release are one event each, in this order.
pub async fn a_watcher_sees_leases_come_change_and_go<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let mut watch = fixture.store("n2").await.watch();
    assert_eq!(next(&mut watch).await, LeaseEvent::Reset(Vec::new()));
    let mut lease = acquire(&*fixture.store("n1").await, 1).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease.lease().clone()));
    soon("publish", lease.publish(&at(2))).await.unwrap();
    assert_eq!(lease.lease().attrs, at(2));
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(lease.lease().clone()));
    let subnet = lease.lease().subnet;
    soon("release", lease.release()).await.unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet));
}

/// A watcher that was too slow knows everything in the end, also what went while it slept.
pub async fn a_watcher_that_falls_behind_misses_nothing<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let leaving = acquire(&*fixture.store("leaving").await, 1).await;
    let mut watch = fixture.store("watcher").await.watch();
    let mut seen = Seen::default();
    seen.fold(next(&mut watch).await);
    // One change that it sees, so that it is at work when it is left behind.
    let mut changing = acquire(&*fixture.store("changing").await, 2).await;
    seen.until_it_is_true(&fixture, &mut watch).await;
    soon("release", leaving.release()).await.unwrap();
    soon("publish", changing.publish(&at(3))).await.unwrap();
    fixture.outrun().await;
    acquire(&*fixture.store("coming").await, 4).await;
    seen.until_it_is_true(&fixture, &mut watch).await;
    // And it goes on from there.
    acquire(&*fixture.store("later").await, 5).await;
    seen.until_it_is_true(&fixture, &mut watch).await;
}

/// Stray keys and broken values are skipped; the subnet behind a broken one is not handed out; everybody else is served.
pub async fn an_entry_that_is_no_lease_costs_only_itself<F: StoreFixture>() {
    let fixture = F::build(TINY).await;
    let oversized = format!(r#"{{"PublicIP":"192.0.2.1","x":"{}"}}"#, "x".repeat(MAX_LEASE_BYTES));
    let stray = ["foo", "config", "10.3.0.8", "10.3.0.8-30&", "10.3.0.8-30hi"];
    for key in stray {
        fixture.put(key, "x").await;
    }
    let broken: Subnet = "10.3.0.4-30".parse().unwrap();
    fixture.put(&broken.to_string(), "garbage").await;
    // That nobody has it may be told, and is nothing new.
    let next = async |watch: &mut Watch| loop {
        match next(watch).await {
            LeaseEvent::Remove(subnet) if subnet == broken => {}
            event => break event,
        }
    };
    let store = fixture.store("n1").await;
    let mut watch = store.watch();
    assert_eq!(next(&mut watch).await, LeaseEvent::Reset(Vec::new()));
    assert_eq!(store.previous().await.unwrap(), None);

    let one = acquire(&*store, 1).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(one.lease().clone()));
    for value in ["", "{", "[]", "\u{1}", r#"{"PublicIP":7}"#, &oversized] {
        fixture.put(&broken.to_string(), value).await;
        fixture.put("foo", value).await;
    }
    let two = acquire(&*fixture.store("n2").await, 2).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(two.lease().clone()));
    let late = fixture.store("n3").await;
    let full = soon("acquire", late.acquire(&at(3))).await.unwrap_err();
    assert!(matches!(full, StoreError::Full { .. }), "{full:?}");

    // A lease that becomes garbage is a lease no more, and one that is repaired is one again.
    let subnet = two.lease().subnet;
    fixture.put(&subnet.to_string(), &oversized).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet));
    fixture.put(&subnet.to_string(), &at(2).to_string()).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(Lease::new(subnet, at(2))));
    for key in stray {
        fixture.remove(key).await;
    }
    fixture.remove(&broken.to_string()).await;
    let three = acquire(&*fixture.store("n3").await, 3).await;
    assert_eq!(next(&mut watch).await, LeaseEvent::upsert(three.lease().clone()));
}

/// Nothing stays behind a watch that was dropped.
pub async fn dropping_a_watch_ends_its_work<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let store = fixture.store("n1").await;
    let before = fixture.open_watches().await;
    let (mut one, mut two) = (store.watch(), store.watch());
    for watch in [&mut one, &mut two] {
        next(watch).await;
    }
    acquire(&*store, 1).await;
    next(&mut one).await;
    next(&mut two).await;
    assert!(fixture.open_watches().await > before, "this fixture does not count watches");
    drop((one, two));
    let ended = async {
        while fixture.open_watches().await > before {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon("watches end", ended).await;
}

/// A watch of the configuration begins with it, and tells when it is another one, cannot be used, has gone or is back.
pub async fn the_config_is_watched<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let store = fixture.store("n1").await;
    let mut configs = store.watch_config();
    let mut next = async || soon("a config", configs.next()).await.expect("a watch never ends");
    assert_eq!(next().await.unwrap(), ROOMY.parse().unwrap());
    let enlarged = r#"{"Network":"10.0.0.0/12"}"#;
    fixture.set_config(Some(enlarged)).await;
    assert_eq!(next().await.unwrap(), enlarged.parse().unwrap());
    fixture.set_config(Some("garbage")).await;
    let unusable = next().await.unwrap_err();
    assert!(matches!(unusable, StoreError::Config { .. }), "{unusable:?}");
    fixture.set_config(None).await;
    let missing = next().await.unwrap_err();
    assert!(matches!(missing, StoreError::ConfigMissing { .. }), "{missing:?}");
    fixture.set_config(Some(enlarged)).await;
    assert_eq!(next().await.unwrap(), enlarged.parse().unwrap());
    let mut late = store.watch_config();
    let first = soon("a config", late.next()).await.unwrap().unwrap();
    assert_eq!(first, enlarged.parse().unwrap());
}

/// A watch begins with all leases there are.
pub async fn the_first_item_is_a_reset<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let store = fixture.store("n1").await;
    assert_eq!(next(&mut store.watch()).await, LeaseEvent::Reset(Vec::new()));
    let one = acquire(&*store, 1).await;
    let two = acquire(&*fixture.store("n2").await, 2).await;
    let LeaseEvent::Reset(mut leases) = next(&mut store.watch()).await else {
        panic!("the first item is not a reset");
    };
    leases.sort_by_key(|lease| lease.subnet);
    let mut expected = [one.lease().clone(), two.lease().clone()].map(Arc::new);
    expected.sort_by_key(|lease| lease.subnet);
    assert_eq!(leases, expected);
}

/// A watcher that follows closely, one that comes late and the store itself agree in the end.
pub async fn two_watchers_agree<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let (mut close, mut late) =
        (fixture.store("close").await.watch(), fixture.store("late").await.watch());
    let (mut close_seen, mut late_seen) = (Seen::default(), Seen::default());
    late_seen.fold(next(&mut late).await);
    let mut leases = Vec::new();
    for n in 1..=8 {
        leases.push(acquire(&*fixture.store(&format!("n{n}")).await, n).await);
        close_seen.until_it_is_true(&fixture, &mut close).await;
        match n % 4 {
            2 => soon("publish", leases[0].publish(&at(100 + n))).await.unwrap(),
            3 => soon("release", leases.remove(0).release()).await.unwrap(),
            _ => {}
        }
        close_seen.until_it_is_true(&fixture, &mut close).await;
    }
    late_seen.until_it_is_true(&fixture, &mut late).await;
    assert_eq!(close_seen, late_seen);
    let held: BTreeMap<_, _> =
        leases.iter().map(|it| (it.lease().subnet, Arc::new(it.lease().clone()))).collect();
    assert_eq!(close_seen.0, held);
}

/// What a watcher knows.
#[derive(Debug, Default, PartialEq)]
struct Seen(BTreeMap<Subnet, Arc<Lease>>);

impl Seen {
    fn fold(&mut self, event: LeaseEvent) {
        match event {
            LeaseEvent::Remove(subnet) => {
                self.0.remove(&subnet);
            }
            LeaseEvent::Reset(leases) => {
                self.0 = leases.into_iter().map(|lease| (lease.subnet, lease)).collect();
            }
            LeaseEvent::Upsert(lease) => {
                self.0.insert(lease.subnet, lease);
            }
        }
    }

    /// Folds events until this is what is stored.
    async fn until_it_is_true<F: StoreFixture>(&mut self, fixture: &F, watch: &mut Watch) {
        let truth: BTreeMap<Subnet, LeaseAttrs> = fixture
            .entries()
            .await
            .into_iter()
            .map(|(key, entry)| (key.parse().unwrap(), entry.value.parse().unwrap()))
            .collect();
        let is_true = |seen: &Self| {
            let seen = seen.0.iter().map(|(subnet, lease)| (subnet, &lease.attrs));
            seen.eq(&truth)
        };
        while !is_true(self) {
            self.fold(next(watch).await);
        }
    }
}

type Watch = BoxStream<'static, Result<LeaseEvent, StoreError>>;

async fn next(watch: &mut Watch) -> LeaseEvent {
    let item = soon("an event", watch.next()).await;
    item.expect("a watch never ends").expect("nothing is wrong with the store")
}
