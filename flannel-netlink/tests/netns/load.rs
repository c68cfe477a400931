//! Many objects, and syncs that end midway.

use super::*;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_sync_that_is_dropped_midway_is_made_up_for() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    let want_all = |table: &mut Table, host: &Host, gateway| {
        for number in 1..=200 {
            table.want(route(host, number, gateway));
        }
    };
    // Dropped at each of its awaits in turn, with another mind afterwards: what was there before is wanted again.
    let mut left_behind = 0;
    for polls in 1.. {
        want_all(&mut table, &host, 2);
        table.sync().await.unwrap();
        want_all(&mut table, &host, 3);
        let mut sync = Box::pin(table.sync());
        let mut left = polls;
        let whole = std::future::poll_fn(|context| {
            left -= 1;
            match sync.as_mut().poll(context) {
                std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
                poll => poll.map(Some),
            }
        });
        let whole = whole.await;
        drop(sync);
        let there = routes(&mut host).await;
        left_behind += there.iter().filter(|there| **there == route(&host, 1, 3)).count();
        want_all(&mut table, &host, 2);
        table.sync().await.unwrap();
        let there = routes(&mut host).await;
        for number in 1..=200 {
            assert!(there.contains(&route(&host, number, 2)), "{number} after {polls} polls");
        }
        if let Some(report) = whole {
            assert_eq!(report.unwrap().replaced, 200);
            break;
        }
    }
    assert!(left_behind > 1, "no sync was dropped after it had written");
}

/// How long this thread has run, in the kernel or out of it: what other programs do at the same time does not count.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn ten_thousand_peers_are_fast_and_one_costs_one() {
    let mut host = Host::new().await;
    let link = vxlan(&mut host.connection).await;
    let mut table = table(&host).await;
    let objects: Vec<Object> =
        (256..10_256).flat_map(|number| peer(&mut table, link, number)).collect();
    let started = busy();
    table.want_only(objects.iter().copied());
    let planned = busy() - started;
    let report = table.sync().await.unwrap();
    let synced = busy() - started;
    println!("10,000 peers, 40,000 objects: want {planned:?}, with sync {synced:?}");
    assert_eq!((report.added, report.failures.len()), (40_000, 0), "{:?}", report.failures.first());
    let limit = if cfg!(debug_assertions) { 4000 } else { 400 };
    assert!(synced < Duration::from_millis(limit), "{synced:?}");
    assert_eq!(
        list_routes(&mut host.connection, Route::MAIN, IpFamily::V4).await.unwrap().len(),
        10_001
    );

    let mut times = Vec::new();
    for number in 11_000..11_050 {
        let objects = peer(&mut table, link, number);
        let started = Instant::now();
        for object in &objects {
            table.want(*object);
        }
        assert_eq!(table.sync().await.unwrap().added, 4);
        for object in &objects {
            table.forget(&object.key());
        }
        assert_eq!(table.sync().await.unwrap().removed, 4);
        times.push(started.elapsed() / 2);
    }
    times.sort();
    println!("one peer more or less: median {:?}", times[25]);
    assert!(times[25] < Duration::from_millis(if cfg!(debug_assertions) { 10 } else { 1 }));

    let started = Instant::now();
    let mut again = Table::open(&host.namespace, mark()).await.unwrap();
    again.want_only(objects.iter().copied());
    let report = again.sync().await.unwrap();
    println!("restart, nothing to do: {:?} for {} objects read", started.elapsed(), report.read);
    assert_eq!(report.written(), 0);

    let started = Instant::now();
    again.want_only([]);
    assert_eq!(again.sync().await.unwrap().removed, 40_000);
    println!("all removed: {:?}", started.elapsed());
    assert!(matches!(objects[0].key(), Key::Nexthop(_)));
}
