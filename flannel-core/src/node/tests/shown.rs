//! What a node shows of itself to those who watch over it.

use super::*;
use crate::{
    Family, PeerFault, PeerProblem, RoutingMode, Status, SyncReport, Totals, Transport,
    testing::MockNetwork,
};

#[tokio::test(start_paused = true)]
async fn the_loop_answers_wherever_it_waits() {
    // For the store's configuration.
    let mut away = MockStore::new();
    away.expect_config().returning(|| Err(unavailable()));
    let waiting = node(away, fake());
    let handle = waiting.handle();
    let running = tokio::spawn(waiting.run());
    assert_eq!(handle.ping().await, Some(()));
    running.abort();
    settle().await;
    assert_eq!(handle.ping().await, None, "it has ended");

    // For the backend.
    let (store, _events) = store(&Held::new(OWN));
    let backend = fake();
    backend.fail_starts(u32::MAX);
    let starting = node(store, backend);
    let mut handle = starting.handle();
    tokio::spawn(starting.run());
    handle.wait_for(|status| status.fault(Activity::Start).is_some()).await.unwrap();
    assert_eq!(handle.ping().await, Some(()));

    // For the first snapshot, and for a sync.
    let (store, events) = super::store(&Held::new(OWN));
    let backend = fake();
    backend.slow_syncs(Duration::from_secs(20));
    let serving = node(store, backend.clone());
    let handle = serving.handle();
    tokio::spawn(serving.run());
    settle().await;
    assert_eq!(handle.ping().await, Some(()));
    events.send(Ok(LeaseEvent::reset(vec![lease("10.3.2.0-24", 2)]))).unwrap();
    settle().await;
    let asked = Instant::now();
    assert_eq!(handle.ping().await, Some(()));
    assert_eq!((asked.elapsed(), backend.syncs(), handle.status().syncs), (Duration::ZERO, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn how_long_the_lease_is_good_for_is_shown_and_renewals_wake_nobody() {
    let (store, events) = store(&Held::new(OWN));
    let node = node(store, fake());
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    let ready = handle.wait_for(Status::is_ready).await.unwrap();
    let left = ready.trusted_until.unwrap() - Instant::now();
    assert!(left > Duration::from_secs(88) && left < Duration::from_secs(90), "{left:?}");
    while timeout(Duration::from_secs(1), handle.changed()).await.is_ok() {}
    assert!(timeout(Duration::from_secs(300), handle.changed()).await.is_err(), "woken");
    let left = handle.status().trusted_until.unwrap() - Instant::now();
    assert!(left > Duration::from_secs(50), "renewed meanwhile: {left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_lease_wakes_those_who_wait_for_a_change_once() {
    let (store, events) = store(&Held::new(OWN));
    let mut handle = serving((store, &events), fake(), vec![lease(OWN, 1)]).await;
    let second = Duration::from_secs(1);
    while timeout(second, handle.changed()).await.is_ok() {}
    for is_news in [true, false] {
        events.send(Ok(LeaseEvent::upsert(lease("10.4.2.0-24", 2)))).unwrap();
        assert_eq!(timeout(second, handle.changed()).await.is_ok(), is_news);
    }
}

#[tokio::test(start_paused = true)]
async fn what_syncs_do_is_added_up_and_the_last_repairs_are_kept() {
    let mut backend = MockBackend::new();
    backend.expect_advertise().returning(|_| Ok(attrs(1)));
    backend.expect_start().returning(|_| {
        let mut network = MockNetwork::new();
        network.expect_mtu().return_const(1500_u32);
        let mut number = 0;
        network.expect_sync().returning(move |_| {
            let mut report = SyncReport::default();
            (report.read, report.added, report.replaced, report.removed) = (3, 2, 5, 1);
            report.count("firewall_rules_added", 4);
            for _ in 0..10 {
                report.repaired.add("route", format!("route {number}"));
                number += 1;
            }
            Ok(report)
        });
        let mut drifts = 0;
        network.expect_drifted().returning(move || {
            drifts += 1;
            if drifts < 6 { Ok(()) } else { Err(unheard()) }
        });
        Ok(Box::new(network))
    });
    let (store, events) = store(&Held::new(OWN));
    let node = node(store, backend);
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    let status = handle.wait_for(|status| status.syncs == 6).await.unwrap();
    let Totals { read, added, replaced, removed, .. } = status.totals.clone();
    assert_eq!((read, added, replaced, removed, status.writes), (18, 12, 30, 6, 48));
    assert_eq!(
        (status.totals.counters["firewall_rules_added"], status.repaired["route"]),
        (24, 60)
    );
    let read: Status = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
    assert_eq!(Status { trusted_until: status.trusted_until, ..read }, status);
    // Eight of each sync are put into words.
    let numbers: Vec<_> = status.repairs.iter().map(|repair| repair.number).collect();
    assert_eq!(numbers, (16..48).collect::<Vec<_>>());
    assert_eq!(status.repairs.back().unwrap().what, "route 57");
}

fn unheard() -> BackendError {
    BackendError::Kernel { operation: "hear".into(), source: "deaf".into() }
}

#[tokio::test(start_paused = true)]
async fn how_packets_reach_peers_is_told_when_asked() {
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    let serving = node(store, backend.clone());
    let mut handle = serving.handle();
    tokio::spawn(serving.run());
    let peer = lease("10.3.2.0-24", 2);
    events.send(Ok(LeaseEvent::reset(vec![peer.clone()]))).unwrap();
    handle.wait_for(Status::is_ready).await.unwrap();
    let syncs = backend.syncs();
    let told = Some(vec![(peer.subnet, Transport::new(Some(RoutingMode::Direct), None))]);
    assert_eq!(handle.transports().await, told);
    assert_eq!(backend.syncs(), syncs, "it costs no sync");

    // During a sync the answer is that of after it.
    backend.slow_syncs(Duration::from_secs(20));
    let other = lease("10.3.3.0-24", 3);
    events.send(Ok(LeaseEvent::upsert(other.clone()))).unwrap();
    settle().await;
    assert_eq!(backend.syncs(), syncs + 1, "it is under way");
    let transports = handle.transports().await.unwrap();
    let peers: Vec<_> = transports.into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(peers, [peer.subnet, other.subnet]);
}

#[test]
fn a_node_serves_somebody_while_one_peer_has_no_problem() {
    let with = |peers, problems: &[&str]| {
        let problem = |key: &&str| {
            let fault = PeerFault::NoAddress { family: Family::Ipv4 };
            PeerProblem::new(key.parse().unwrap(), None, fault)
        };
        let report = SyncReport {
            problems: problems.iter().map(problem).collect(),
            ..SyncReport::default()
        };
        let status = Status { peers, last_sync: Some(report), ..Status::default() };
        status.serves_any_peer()
    };
    assert!(with(Some(2), &["10.3.2.0-24"]));
    assert!(!with(Some(2), &["10.3.2.0-24", "10.3.3.0-24"]));
    assert!(!with(Some(0), &[]));
    assert!(!with(None, &[]));
}
