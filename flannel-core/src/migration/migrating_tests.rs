//! A node among others that migrate, and on its way itself.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{BackendSource, Migrating, MigrationOptions, MigrationRecord, Place, Recorded};
use crate::{
    Backend, BackendError, Lease, LeaseAttrs, LeaseEvent, Network, NetworkConfig, PeerFault, Peers,
    SecondBackend, SecondRole, SyncReport, testing::FakeBackend,
};

/// Has these backends, by kind, and a memory.
#[derive(Debug)]
pub(super) struct Source(Vec<(&'static str, FakeBackend)>, Mutex<Option<MigrationRecord>>);

impl BackendSource for Source {
    fn build(&self, config: &NetworkConfig, _: Place) -> Result<Arc<dyn Backend>, BackendError> {
        let kind = config.backend().kind();
        let (backend, reason) = (kind.into(), "it is not in this test".into());
        let found = self.0.iter().find(|(known, _)| *known == kind);
        let (_, host) = found.ok_or(BackendError::Unsupported { backend, reason })?;
        Ok(Arc::new(host.clone()))
    }

    fn remember(&self, record: &MigrationRecord) -> Result<(), BackendError> {
        *self.1.lock().unwrap() = Some(record.clone());
        Ok(())
    }

    fn recall(&self) -> Option<MigrationRecord> {
        self.1.lock().unwrap().clone()
    }
}

/// Hosts with a backend each, and the source that makes them.
fn hosts_of<const N: usize>(kinds: [&'static str; N]) -> ([FakeBackend; N], Arc<Source>) {
    let hosts = kinds.map(|kind| FakeBackend::of_kind(kind, [192, 0, 2, 1].into()));
    let source = kinds.into_iter().zip(hosts.clone()).collect();
    (hosts, Arc::new(Source(source, Mutex::default())))
}

pub(super) fn hosts() -> ([FakeBackend; 2], Arc<Source>) {
    hosts_of(["one", "two"])
}

pub(super) fn config(kind: &str) -> NetworkConfig {
    format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"{kind}"}}}}"#).parse().unwrap()
}

fn lease(n: u8, kind: &'static str, second: Option<&'static str>) -> Lease {
    let second = second.map(|kind| {
        Box::new(SecondBackend {
            backend_type: kind.into(),
            backend_data: None,
            backend_v6_data: None,
            role: SecondRole::Next,
        })
    });
    let public_ip = Some([192, 0, 2, n].into());
    let attrs =
        LeaseAttrs { public_ip, backend_type: kind.into(), second, ..LeaseAttrs::default() };
    Lease::new(format!("10.3.{n}.0-24").parse().unwrap(), attrs)
}

#[tokio::test]
async fn a_peer_is_reached_from_when_it_publishes_our_backend_as_its_second_one() {
    let ([_, host], source) = hosts();
    let config = config("two");
    let backend = Migrating::new(source, &config, MigrationOptions::default()).unwrap();
    let own = lease(1, "two", None);
    let mut network = backend.start(&own).await.unwrap();
    let mut peers = Peers::new(config, own);
    let mut reached = Vec::new();
    for peer in [
        lease(3, "two", None),
        lease(2, "one", None),
        lease(2, "one", Some("two")),
        lease(4, "two", None),
        lease(2, "two", None),
        lease(2, "one", None),
    ] {
        peers.fold(LeaseEvent::upsert(peer));
        network.sync(&peers).await.unwrap();
        let routes = host.routes();
        reached.push((routes.contains_key(&"10.3.2.0-24".parse().unwrap()), routes.len()));
    }
    assert_eq!(reached, [(false, 1), (false, 1), (true, 2), (true, 3), (true, 3), (false, 2)]);
}

#[tokio::test(start_paused = true)]
async fn two_networks_are_one_until_the_node_has_moved() {
    let (hosts, source) = hosts();
    let record = || source.recall().unwrap();
    hosts[0].set_mtu(1450);
    hosts[1].set_mtu(1370);
    let backend =
        Migrating::new(source.clone(), &config("one"), MigrationOptions::default()).unwrap();
    let own = backend.advertise(None).await.unwrap();
    let own = Lease::new("10.3.1.0-24".parse().unwrap(), own);
    let mut network = backend.start(&own).await.unwrap();
    assert_eq!((network.mtu(), network.is_migrating()), (1450, false));
    let seen = |own: Lease| {
        let mut peers = Peers::new(config("one"), own);
        peers.fold(LeaseEvent::upsert(lease(2, "one", Some("two"))));
        peers.fold(LeaseEvent::upsert(lease(3, "one", None)));
        peers
    };
    let peers = seen(own);
    network.sync(&peers).await.unwrap();

    network.migrate(&config("two")).unwrap();
    network.sync(&peers).await.unwrap();
    assert_eq!((network.mtu(), network.is_migrating()), (1370, true), "the smaller one");
    assert_eq!((record().base.alternate, record().beside.unwrap().alternate), (false, true));
    let is_pending = async |network: &mut Box<dyn Network>| {
        timeout(Duration::from_secs(60), network.drifted()).await.is_err()
    };
    assert!(!is_pending(&mut network).await, "it has more to publish");
    assert!(is_pending(&mut network).await, "and says so once");
    network.sync(&peers).await.unwrap();
    assert!(is_pending(&mut network).await, "also after a sync");
    let attrs = backend.advertise(Some(peers.own())).await.unwrap();
    assert!(is_pending(&mut network).await);

    network.sync(&seen(Lease { attrs, ..peers.own().clone() })).await.unwrap();
    assert_eq!(hosts.each_ref().map(|it| it.routes().len()), [1, 1]);
    // The fake says that a peer is reached where it has a route.
    let [moved, late] = [2, 3].map(|n| lease(n, "", None).subnet);
    assert!(network.transport(&moved).is_some() && network.transport(&late).is_some());
    hosts[1].meddle(|routes| routes.clear());
    assert!(network.transport(&moved).is_none() && network.transport(&late).is_some());
    hosts[0].meddle(|routes| routes.clear());
    assert!(network.transport(&late).is_none());
    // Each of them was meddled with.
    assert!(!is_pending(&mut network).await && !is_pending(&mut network).await);
    assert!(is_pending(&mut network).await);

    // Who has neither of both is told of the one that is moved to.
    let mut peers = seen(peers.own().clone());
    peers.fold(LeaseEvent::upsert(lease(4, "three", None)));
    for ours in ["two", "one"] {
        network.migrate(&config(ours)).unwrap();
        let [problem] = &network.sync(&peers).await.unwrap().problems[..] else { panic!("one") };
        let fault = PeerFault::OtherBackend { ours: ours.into(), theirs: "three".into() };
        assert_eq!((problem.peer, &problem.fault), (lease(4, "", None).subnet, &fault));
    }

    network.teardown().await.unwrap();
    assert_eq!(hosts.each_ref().map(FakeBackend::is_up), [false; 2]);
}

/// What a node with these attributes says of its backends.
fn said(attrs: &LeaseAttrs) -> String {
    let second = attrs.second.as_ref().map(|it| format!(", {} {:?}", it.backend_type, it.role));
    format!("{}{}", attrs.backend_type, second.unwrap_or_default())
}

fn own(attrs: &LeaseAttrs) -> Lease {
    Lease::new("10.3.1.0-24".parse().unwrap(), attrs.clone())
}

/// A sync beside a peer in step: it publishes what we have published before. Returns what we publish then.
async fn round(
    backend: &Migrating,
    network: &mut Box<dyn Network>,
    attrs: LeaseAttrs,
) -> (LeaseAttrs, SyncReport) {
    let mut peers = Peers::new(config("two"), own(&attrs));
    let public_ip = Some([192, 0, 2, 2].into());
    let peer = LeaseAttrs { public_ip, ..attrs };
    peers.fold(LeaseEvent::upsert(Lease::new("10.3.2.0-24".parse().unwrap(), peer)));
    let report = network.sync(&peers).await.unwrap();
    assert!(report.problems.is_empty() && report.faults.is_empty(), "{report:?}");
    (backend.advertise(Some(peers.own())).await.unwrap(), report)
}

/// Two nodes in step: what one says in a round, the other one said in the round before.
#[tokio::test(start_paused = true)]
async fn two_nodes_move_together_also_if_they_restart_in_each_round() {
    for restarts in [false, true] {
        let (hosts, source) = hosts();
        let options = MigrationOptions::default();
        let begin =
            |wanted: &str| Migrating::new(source.clone(), &config(wanted), options).unwrap();
        let mut backend = begin("one");
        let mut attrs = backend.advertise(None).await.unwrap();
        let mut network = backend.start(&own(&attrs)).await.unwrap();
        network.migrate(&config("two")).unwrap();
        let mut rounds = Vec::new();
        for n in 0..7 {
            // Whoever restarts lingers once more.
            if restarts && n < 4 {
                drop(network);
                backend = begin("two");
                attrs = backend.advertise(Some(&own(&attrs))).await.unwrap();
                network = backend.start(&own(&attrs)).await.unwrap();
            }
            let report;
            (attrs, report) = round(&backend, &mut network, attrs).await;
            let engines = backend.report().properties["kind"].clone();
            let progress = report.migration.map(|it| {
                assert_eq!(it.then, None);
                format!(
                    "{} to {}, {} of {}, {} waited for",
                    it.from, it.to, it.moved, it.peers, it.waiting
                )
            });
            rounds.push(format!("{}; {engines}; {}", said(&attrs), progress.unwrap_or_default()));
            assert!(hosts.iter().any(|host| host.routes().len() == 1), "the peer has a way");
            sleep(options.linger).await;
        }
        let said = [
            "one, two Next; two; one to two, 0 of 1, 1 waited for",
            "two, one Unused; two; one to two, 1 of 1, 1 waited for",
            "two; two; one to two, 1 of 1, 0 waited for",
            "two; two; one to two, 1 of 1, 0 waited for",
            "two; two; ",
            "two; two; ",
            "two; two; ",
        ];
        assert_eq!(rounds, said, "{restarts}");
    }
}

/// Moves a node from one to two, up to where the first backend lingers.
async fn lingering(
    hosts: &[FakeBackend; 2],
    source: Arc<Source>,
) -> (Migrating, Box<dyn Network>, LeaseAttrs) {
    let backend = Migrating::new(source, &config("one"), MigrationOptions::default()).unwrap();
    let mut attrs = backend.advertise(None).await.unwrap();
    let mut network = backend.start(&own(&attrs)).await.unwrap();
    network.migrate(&config("two")).unwrap();
    for _ in 0..4 {
        (attrs, _) = round(&backend, &mut network, attrs).await;
    }
    assert_eq!((said(&attrs), hosts[0].is_up()), ("two".into(), true), "it lingers");
    (backend, network, attrs)
}

/// Goes on until the backend that lingers, and is wanted again, was taken down and has come back.
async fn comes_back(
    hosts: &[FakeBackend; 2],
    backend: &Migrating,
    network: &mut Box<dyn Network>,
    mut attrs: LeaseAttrs,
) {
    let linger = MigrationOptions::default().linger;
    let report;
    (attrs, report) = round(backend, network, attrs).await;
    assert_eq!((said(&attrs), hosts[0].is_up()), ("two".into(), true), "it still lingers");
    assert_eq!(report.migration.unwrap().then.as_deref(), Some("one"));
    sleep(linger).await;
    (attrs, _) = round(backend, network, attrs).await;
    assert_eq!((said(&attrs), hosts[0].is_up()), ("two".into(), false), "it is taken down");
    for _ in 0..4 {
        (attrs, _) = round(backend, network, attrs).await;
        assert!(hosts.iter().any(|host| host.routes().len() == 1), "the peer has a way");
    }
    sleep(linger).await;
    (attrs, _) = round(backend, network, attrs).await;
    let are_up = hosts.each_ref().map(FakeBackend::is_up);
    assert_eq!((said(&attrs), are_up), ("one".into(), [true, false]));
}

/// Peers have seen that it goes, and what it published goes with it: keys, for instance.
#[tokio::test(start_paused = true)]
async fn a_backend_that_the_lease_has_ceased_to_name_comes_back_as_a_new_one() {
    let (hosts, source) = hosts();
    let (backend, mut network, attrs) = lingering(&hosts, source).await;
    network.migrate(&config("one")).unwrap();
    comes_back(&hosts, &backend, &mut network, attrs).await;
    assert_eq!(hosts[0].started().len(), 2);
}

/// A peer that takes nothing else is no reason to make it anew.
#[tokio::test(start_paused = true)]
async fn a_backend_that_a_peer_needs_again_is_turned_back_to_at_once() {
    let (hosts, source) = hosts();
    let (backend, mut network, mut attrs) = lingering(&hosts, source).await;
    network.migrate(&config("one")).unwrap();
    let mut peers = Peers::new(config("two"), own(&attrs));
    peers.fold(LeaseEvent::upsert(lease(2, "one", None)));
    let report = network.sync(&peers).await.unwrap();
    assert_eq!(report.migration.unwrap().then, None);
    attrs = backend.advertise(Some(&own(&attrs))).await.unwrap();
    for _ in 0..6 {
        (attrs, _) = round(&backend, &mut network, attrs).await;
        sleep(MigrationOptions::default().linger).await;
    }
    let are_up = hosts.each_ref().map(FakeBackend::is_up);
    assert_eq!((said(&attrs), are_up), ("one".into(), [true, false]));
    assert_eq!(hosts[0].started().len(), 1);
}

#[test]
fn a_backend_that_was_changed_while_the_node_was_down_is_put_beside_with_the_other_mark() {
    let recorded = |kind, alternate| Recorded { config: config(kind), alternate };
    for alternate in [false, true] {
        for (wanted, beside) in [("one", None), ("two", Some(recorded("two", !alternate)))] {
            let (_, source) = hosts();
            let base = recorded("one", alternate);
            source.remember(&MigrationRecord { base: base.clone(), beside: None }).unwrap();
            Migrating::new(source.clone(), &config(wanted), MigrationOptions::default()).unwrap();
            assert_eq!(source.recall(), Some(MigrationRecord { base, beside }));
        }
    }
}

/// Its program is gone, for instance. What marks its routes is not what marks the other one's.
#[test]
fn a_backend_from_before_that_cannot_be_made_is_left_and_the_other_one_is_itself() {
    let recorded = |kind, alternate| Recorded { config: config(kind), alternate };
    for (base, beside) in [("gone", "two"), ("two", "gone")] {
        for alternate in [false, true] {
            let (_, source) = hosts();
            let [base, beside] = [base, beside].map(|it| recorded(it, alternate == (it == "two")));
            source.remember(&MigrationRecord { base, beside: Some(beside) }).unwrap();
            Migrating::new(source.clone(), &config("two"), MigrationOptions::default()).unwrap();
            let kept = MigrationRecord { base: recorded("two", alternate), beside: None };
            assert_eq!(source.recall(), Some(kept));
        }
    }
}

/// The node does not remember that it lingers: its lease says so.
#[tokio::test(start_paused = true)]
async fn what_the_lease_does_not_name_comes_back_as_a_new_one_also_after_a_restart() {
    // The backend is another one again before the restart, and before the first sync after it.
    for learns_late in [false, true] {
        let (hosts, source) = hosts();
        let (before, network, attrs) = lingering(&hosts, Arc::clone(&source)).await;
        drop((before, network));
        let wanted = config(if learns_late { "two" } else { "one" });
        let backend = Migrating::new(source, &wanted, MigrationOptions::default()).unwrap();
        let attrs = backend.advertise(Some(&own(&attrs))).await.unwrap();
        let mut network = backend.start(&own(&attrs)).await.unwrap();
        if learns_late {
            network.migrate(&config("one")).unwrap();
        }
        comes_back(&hosts, &backend, &mut network, attrs).await;
        assert_eq!(hosts[0].started().len(), 3, "first, after the restart, and as a new one");
    }
}

/// Nobody has it yet: they are for when it begins.
#[tokio::test(start_paused = true)]
async fn options_of_a_backend_that_is_to_come_are_for_no_other() {
    let (hosts, source) = hosts_of(["one", "two", "three"]);
    let options = MigrationOptions::default();
    let backend = Migrating::new(source.clone(), &config("one"), options).unwrap();
    let mut attrs = backend.advertise(None).await.unwrap();
    let mut network = backend.start(&own(&attrs)).await.unwrap();
    network.migrate(&config("two")).unwrap();
    (attrs, _) = round(&backend, &mut network, attrs).await;
    network.migrate(&config("three")).unwrap();
    let changed = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"three","Port":7}}"#;
    let changed: NetworkConfig = changed.parse().unwrap();
    network.reconfigure(changed.backend()).unwrap();
    assert_eq!(source.recall().unwrap().base.config, config("one"));
    assert!(network.reconfigure(config("four").backend()).is_err());
    for _ in 0..20 {
        sleep(options.linger).await;
        (attrs, _) = round(&backend, &mut network, attrs).await;
    }
    assert_eq!(said(&attrs), "three");
    assert_eq!(hosts.each_ref().map(FakeBackend::is_up), [false, false, true]);
    assert_eq!(source.recall().unwrap().base.config, changed);
}

#[tokio::test(start_paused = true)]
async fn a_third_backend_waits_for_what_a_restarted_node_has_begun() {
    let (hosts, source) = hosts_of(["one", "two", "three"]);
    let options = MigrationOptions::default();
    let begin = |kind| Migrating::new(source.clone(), &config(kind), options).unwrap();
    let mut backend = begin("one");
    let mut attrs = backend.advertise(None).await.unwrap();
    let mut network = backend.start(&own(&attrs)).await.unwrap();
    network.migrate(&config("two")).unwrap();
    (attrs, _) = round(&backend, &mut network, attrs).await;
    drop(network);
    backend = begin("three");
    network = backend.start(&own(&attrs)).await.unwrap();
    for _ in 0..20 {
        (attrs, _) = round(&backend, &mut network, attrs).await;
        sleep(options.linger).await;
    }
    assert_eq!(said(&attrs), "three");
    assert_eq!(hosts.each_ref().map(FakeBackend::is_up), [false, false, true]);
}

/// A sync may be dropped at any await: it may be the last one of a migration.
#[tokio::test(start_paused = true)]
async fn what_is_taken_down_when_a_sync_is_dropped_is_taken_down_by_the_next_one() {
    let (hosts, source) = hosts();
    let (backend, mut network, mut attrs) = lingering(&hosts, Arc::clone(&source)).await;
    sleep(MigrationOptions::default().linger).await;
    hosts[0].slow_syncs(Duration::from_secs(2));
    for _ in 0..3 {
        let last = round(&backend, &mut network, attrs.clone());
        assert!(timeout(Duration::from_millis(500), last).await.is_err());
    }
    let is_remembered = source.recall().unwrap().beside.is_some();
    assert!(is_remembered && hosts[0].is_up(), "a start would go on with it");
    for _ in 0..2 {
        (attrs, _) = round(&backend, &mut network, attrs).await;
    }
    assert_eq!(said(&attrs), "two");
    assert_eq!(hosts.each_ref().map(FakeBackend::is_up), [false, true]);
    assert_eq!(hosts.each_ref().map(|it| it.routes().len()), [0, 1], "the peer has a way");
    assert_eq!(hosts.each_ref().map(|it| it.started().len()), [1, 1], "and nothing was made twice");
    assert_eq!(source.recall().unwrap().beside, None);
}
