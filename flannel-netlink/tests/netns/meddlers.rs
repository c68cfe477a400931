//! Others who change what is ours, again and again, or between our own changes.

use tokio::time::{MissedTickBehavior, interval};

use super::*;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_meddler_does_not_make_us_write_without_end_nor_delay_others() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.want(route(&host, 1, 2));
    table.want(route(&host, 2, 2));
    table.sync().await.unwrap();
    let own = table.connection().port();
    let mut monitor = Monitor::open(&host.namespace).unwrap();
    let started = Instant::now();
    let mut meddling = interval(Duration::from_millis(5));
    // How many times the table told of drifts until it told of the other route's.
    let (mut removed, mut told, mut told_of_other) = (false, 0, None);
    while started.elapsed() < Duration::from_secs(3) {
        tokio::select! {
            _ = meddling.tick() => {
                host.put(Route { protocol: FOREIGN, ..route(&host, 1, 66) }).await;
                if !removed && started.elapsed() > Duration::from_millis(1500) {
                    host.remove(route(&host, 2, 2)).await;
                    removed = true;
                }
            }
            drifts = table.drifted() => {
                let other = DriftSubject::Object(Object::from(route(&host, 2, 2)).key());
                told += u32::from(removed);
                if drifts.unwrap().iter().any(|drift| drift.subject == other) {
                    told_of_other.get_or_insert(told);
                }
                table.sync().await.unwrap();
            }
        }
    }
    // The last damage is repaired although nothing more happens that could remind us.
    host.put(Route { protocol: FOREIGN, ..route(&host, 1, 66) }).await;
    let stopped = Instant::now();
    while !routes(&mut host).await.contains(&route(&host, 1, 2)) {
        assert!(
            stopped.elapsed() < Duration::from_secs(60),
            "not repaired after the meddler stopped"
        );
        drift(&mut table).await;
        table.sync().await.unwrap();
    }
    let mut writes = 0;
    while let Some(notice) = monitor.next_waiting().unwrap() {
        if let Notice::Added { subject: Subject::Object(Object::Route(it)), port, .. } = notice
            && port == own
            && it.destination == route(&host, 1, 2).destination
        {
            writes += 1;
        }
    }
    // 20 at once, 20 a second, and room for a machine that is slow.
    assert!((20..=110).contains(&writes), "{writes} writes in 3 s");
    // It may have been about to tell of the meddler's.
    assert!(told_of_other.is_some_and(|told| told <= 2), "{told_of_other:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn whoever_deletes_a_route_ten_times_a_second_finds_it_each_time() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.want(route(&host, 1, 2));
    table.sync().await.unwrap();
    let (mut waits, mut tick) = (Vec::new(), interval(Duration::from_millis(100)));
    // After a while in which nothing ran, they are not made up for: more than twenty a second would be postponed.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Longer than the repairs that are free at once.
    for _ in 0..30 {
        tick.tick().await;
        host.remove(route(&host, 1, 2)).await;
        let removed = Instant::now();
        drift(&mut table).await;
        let report = table.sync().await.unwrap();
        assert_eq!((report.added, report.postponed), (1, 0), "{report:?}");
        waits.push(removed.elapsed());
    }
    waits.sort_unstable();
    assert!(waits[15] < Duration::from_millis(30), "the median of {waits:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_change_in_the_time_between_our_own_is_not_taken_for_ours() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    let last = route(&host, 200, 2);
    for number in 1..=200 {
        table.want(route(&host, number, 2));
    }
    table.sync().await.unwrap();
    // In one queue: ours, theirs, ours. Nobody reads it before all are there.
    for number in 1..=100 {
        table.want(route(&host, number, 3));
    }
    table.sync().await.unwrap();
    host.remove(last).await;
    for number in 101..=150 {
        table.want(route(&host, number, 3));
    }
    let report = table.sync().await.unwrap();
    assert_eq!((report.added, report.replaced), (1, 50), "{report:?}");
    assert!(
        matches!(report.drifts[..], [Drift { by: ChangedBy::Port(port), .. }] if port == host.connection.port())
    );
    assert!(routes(&mut host).await.contains(&last));
}
