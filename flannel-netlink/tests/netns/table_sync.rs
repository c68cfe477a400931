use std::{future::Future, time::Duration};

use flannel_netlink::{
    Connection, LinkChange, LinkSpec, LinkSpecKind, Monitor, Notice, Subject, Table, alter_link,
    delete_link, ensure_link, list_forwarding, list_neighbours, list_nexthops, list_routes,
    state::{
        Address, ForwardingEntry, IpFamily, Key, MacAddress, Neighbour, Nexthop, Object, Route,
        Vxlan,
    },
    table::{ChangedBy, Drift, DriftChange, DriftSubject, Mark},
};
use tokio::time::{Instant, timeout};

use crate::support::Host;

mod load;
mod meddlers;

const PROTOCOL: u8 = 90;
const FOREIGN: u8 = 4;

fn mark() -> Mark {
    let networks: Vec<ipnetwork::IpNetwork> =
        ["10.0.0.0/8", "fd00::/16"].iter().map(|network| network.parse().unwrap()).collect();
    let mut mark = Mark::new(PROTOCOL, networks);
    mark.nexthops = 1_000_000..=1_999_999;
    mark.devices.insert("flannel.1".to_owned());
    mark
}

async fn table(host: &Host) -> Table {
    Table::open(&host.namespace, mark()).await.unwrap()
}

fn route(host: &Host, number: u8, gateway: u8) -> Route {
    Route::new(format!("10.1.{number}.0/24").parse().unwrap(), PROTOCOL)
        .via_gateway(format!("192.0.2.{gateway}").parse().unwrap(), host.eth0.index)
}

async fn routes(host: &mut Host) -> Vec<Route> {
    list_routes(&mut host.connection, Route::MAIN, IpFamily::V4).await.unwrap()
}

async fn vxlan(connection: &mut Connection) -> u32 {
    let mut vxlan = Vxlan::new(1);
    vxlan.local = Some("192.0.2.1".parse().unwrap());
    let spec = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(vxlan));
    ensure_link(connection, &spec).await.unwrap().0.index
}

/// Everything one peer needs on a VXLAN device.
fn peer(table: &mut Table, link: u32, number: u32) -> Vec<Object> {
    let [_, high, low, _] = (number << 8).to_be_bytes();
    let subnet: ipnetwork::IpNetwork = format!("10.{high}.{low}.0/24").parse().unwrap();
    let mac = MacAddress::new([0x0e, 0, 0, 0, high, low]);
    let remote = std::net::Ipv4Addr::new(192, 0, high + 3, low).into();
    let id = table.nexthop_id(link, subnet.ip()).unwrap();
    let mut nexthop = Nexthop::new(id, link, subnet.ip(), PROTOCOL);
    nexthop.onlink = true;
    vec![
        nexthop.into(),
        ForwardingEntry::new(link, mac, remote).into(),
        Neighbour::new(link, subnet.ip(), mac).into(),
        Route::new(subnet, PROTOCOL).via_nexthop(id).into(),
    ]
}

/// The drift that must come.
async fn drift(table: &mut Table) -> Vec<Drift> {
    timeout(Duration::from_secs(60), table.drifted()).await.expect("a drift").unwrap()
}

async fn is_quiet(table: &mut Table) -> bool {
    timeout(Duration::from_millis(150), table.drifted()).await.is_err()
}

/// Awaits `work` and counts what the kernel changed meanwhile.
async fn changes(host: &Host, work: impl Future<Output = ()>) -> usize {
    let mut monitor = Monitor::open(&host.namespace).unwrap();
    let ((), notices) = monitor.during(work).await.unwrap();
    notices.len()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_wanted_is_there_and_a_second_sync_writes_nothing() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    for number in 1..=20 {
        table.want(route(&host, number, number + 1));
    }
    let report = table.sync().await.unwrap();
    assert_eq!((report.added, report.replaced, report.removed), (20, 0, 0));
    assert!(report.failures.is_empty(), "{report:?}");
    let seen = changes(&host, async {
        let report = table.sync().await.unwrap();
        assert_eq!((report.written(), report.read), (0, 0), "{report:?}");
    });
    assert_eq!(seen.await, 0);
    assert!(is_quiet(&mut table).await);
    let ours =
        routes(&mut host).await.into_iter().filter(|route| route.protocol == PROTOCOL).count();
    assert_eq!(ours, 20);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_forgotten_or_stale_goes_and_foreign_state_stays() {
    let mut host = Host::new().await;
    let stale = route(&host, 1, 2);
    let foreign_protocol = Route { protocol: FOREIGN, ..route(&host, 2, 2) };
    let foreign_network =
        Route { destination: "172.16.0.0/24".parse().unwrap(), ..route(&host, 2, 2) };
    let foreign_table = Route { table: 1000, ..route(&host, 3, 2) };
    let foreign_nexthop = Nexthop::new(7, host.eth0.index, "192.0.2.9".parse().unwrap(), PROTOCOL);
    let stale_nexthop =
        Nexthop::new(1_000_005, host.eth0.index, "192.0.2.9".parse().unwrap(), PROTOCOL);
    let foreign_neighbour = Neighbour::new(
        host.eth0.index,
        "192.0.2.9".parse().unwrap(),
        "0e:00:00:00:00:09".parse().unwrap(),
    );
    for object in [stale, foreign_protocol, foreign_network, foreign_table] {
        host.put(object).await;
    }
    host.put(foreign_nexthop).await;
    host.put(stale_nexthop).await;
    host.put(foreign_neighbour).await;

    let mut table = table(&host).await;
    table.want(route(&host, 5, 2));
    let report = table.sync().await.unwrap();
    assert_eq!((report.added, report.removed), (1, 2), "{report:?}");
    assert!(report.left_alone >= 3, "{report:?}");
    table.forget(&Object::from(route(&host, 5, 2)).key());
    assert_eq!(table.sync().await.unwrap().removed, 1);

    let found = routes(&mut host).await;
    assert!(found.contains(&foreign_protocol) && found.contains(&foreign_network));
    assert!(!found.contains(&stale) && !found.contains(&route(&host, 5, 2)));
    let other = list_routes(&mut host.connection, 1000, IpFamily::V4).await.unwrap();
    assert_eq!(other, [foreign_table]);
    assert_eq!(list_nexthops(&mut host.connection).await.unwrap(), [foreign_nexthop]);
    let eth0 = host.eth0.index;
    assert!(
        list_neighbours(&mut host.connection, eth0).await.unwrap().contains(&foreign_neighbour)
    );
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_restarted_owner_adopts_what_fits() {
    let mut host = Host::new().await;
    let link = vxlan(&mut host.connection).await;
    let mut first = table(&host).await;
    for number in 256..266 {
        for object in peer(&mut first, link, number) {
            first.want(object);
        }
    }
    assert_eq!(first.sync().await.unwrap().added, 40);
    drop(first);
    let mut second = table(&host).await;
    // In another order, so that only looking at the kernel gives the same numbers.
    for number in (257..266).rev() {
        for object in peer(&mut second, link, number) {
            second.want(object);
        }
    }
    let report = second.sync().await.unwrap();
    assert_eq!((report.added, report.replaced, report.removed), (0, 0, 4), "{report:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_wrong_object_at_our_key_is_replaced_and_named() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.want(route(&host, 1, 2));
    table.sync().await.unwrap();
    let wrong = Route { protocol: FOREIGN, ..route(&host, 1, 66) };
    host.put(wrong).await;
    let drifts = drift(&mut table).await;
    assert_eq!(drifts.len(), 1);
    assert_eq!(drifts[0].change, DriftChange::Altered(wrong.into()));
    assert_eq!(drifts[0].by, ChangedBy::Port(host.connection.port()));
    assert_eq!(table.sync().await.unwrap().replaced, 1);
    assert!(routes(&mut host).await.contains(&route(&host, 1, 2)));
    assert!(!routes(&mut host).await.contains(&wrong));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_kind_of_object_is_repaired_when_removed() {
    let mut host = Host::new().await;
    let link = vxlan(&mut host.connection).await;
    let mut table = table(&host).await;
    let mut wanted = peer(&mut table, link, 256);
    wanted.push(Address::new(link, "10.99.0.0/32".parse().unwrap()).into());
    let v6 = Route::new("fd00:1::/64".parse().unwrap(), PROTOCOL);
    wanted.push(v6.via_gateway("2001:db8::9".parse().unwrap(), host.eth0.index).into());
    for object in &wanted {
        table.want(*object);
    }
    assert!(table.sync().await.unwrap().failures.is_empty());
    assert!(is_quiet(&mut table).await);
    for object in &wanted {
        host.remove(*object).await;
        let drifts = drift(&mut table).await;
        let named = drifts.iter().any(|drift| drift.subject == DriftSubject::Object(object.key()));
        assert!(named, "{object}: {drifts:?}");
        let started = Instant::now();
        while table.sync().await.unwrap().written() > 0 || !is_quiet(&mut table).await {
            assert!(started.elapsed() < Duration::from_secs(5), "{object} is not repaired");
        }
    }
    let mut found: Vec<Object> = routes(&mut host).await.into_iter().map(Object::from).collect();
    let v6 = list_routes(&mut host.connection, Route::MAIN, IpFamily::V6).await.unwrap();
    found.extend(v6.into_iter().map(Object::from));
    found.extend(list_nexthops(&mut host.connection).await.unwrap().into_iter().map(Object::from));
    found.extend(
        list_forwarding(&mut host.connection, link).await.unwrap().into_iter().map(Object::from),
    );
    found.extend(
        list_neighbours(&mut host.connection, link).await.unwrap().into_iter().map(Object::from),
    );
    for object in wanted.iter().filter(|object| !matches!(object, Object::Address(_))) {
        assert!(found.contains(object), "{object}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn routes_that_the_kernel_drops_silently_come_back_after_a_link_flap() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.want(route(&host, 1, 2));
    let id = table.nexthop_id(host.eth0.index, "192.0.2.3".parse().unwrap()).unwrap();
    table.want(Nexthop::new(id, host.eth0.index, "192.0.2.3".parse().unwrap(), PROTOCOL));
    table.want(Route::new("10.1.2.0/24".parse().unwrap(), PROTOCOL).via_nexthop(id));
    assert_eq!(table.sync().await.unwrap().added, 3);
    let set = |up| LinkChange { up: Some(up), ..LinkChange::default() };
    alter_link(&mut host.connection, host.eth0.index, &set(false)).await.unwrap();
    assert_eq!(drift(&mut table).await.len(), 3);
    let report = table.sync().await.unwrap();
    assert_eq!(report.failures.len(), 3, "the device is down: {report:?}");
    assert!(report.failures.iter().any(|failure| failure.source.unreachable()), "{report:?}");
    alter_link(&mut host.connection, host.eth0.index, &set(true)).await.unwrap();
    let drifts = drift(&mut table).await;
    assert!(drifts.iter().all(|drift| drift.change == DriftChange::MayWorkNow), "{drifts:?}");
    let report = table.sync().await.unwrap();
    assert_eq!((report.added, report.failures.len()), (3, 0), "{report:?}");
    assert!(routes(&mut host).await.contains(&route(&host, 1, 2)));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_removed_device_and_address_are_noticed() {
    let mut host = Host::new().await;
    let link = vxlan(&mut host.connection).await;
    let mut table = table(&host).await;
    for object in peer(&mut table, link, 256) {
        table.want(object);
    }
    table.want(route(&host, 1, 2));
    table.sync().await.unwrap();
    delete_link(&mut host.connection, link).await.unwrap();
    let mut noticed = 0;
    while noticed < 4 {
        noticed += drift(&mut table).await.len();
    }
    let address = Address::new(host.eth0.index, "192.0.2.1/24".parse().unwrap());
    host.remove(address).await;
    let drifts = drift(&mut table).await;
    let key = Object::from(route(&host, 1, 2)).key();
    assert!(drifts.iter().any(|drift| drift.subject == DriftSubject::Object(key)), "{drifts:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_watched_device_is_reported_when_altered() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.sync().await.unwrap();
    table.watch_link(host.eth0.clone());
    assert!(is_quiet(&mut table).await);
    let change = LinkChange { mtu: Some(1300), ..LinkChange::default() };
    alter_link(&mut host.connection, host.eth0.index, &change).await.unwrap();
    let drifts = drift(&mut table).await;
    assert!(
        matches!(&drifts[0].change, DriftChange::AlteredLink(link) if link.mtu == 1300),
        "{drifts:?}"
    );
    delete_link(&mut host.connection, host.eth0.index).await.unwrap();
    assert_eq!(drift(&mut table).await[0].change, DriftChange::Removed);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn lost_notifications_lead_to_a_listing() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.want(route(&host, 1, 2));
    table.sync().await.unwrap();
    host.remove(route(&host, 1, 2)).await;
    // More than the table's queue holds, and it reads nothing meanwhile.
    let noise = Route { table: 1000, protocol: FOREIGN, ..route(&host, 2, 2) };
    let mut requests = Vec::new();
    for _ in 0..10_000 {
        requests.push(noise.replace());
        requests.push(noise.delete());
    }
    for result in host.connection.apply(&requests).await {
        result.unwrap();
    }
    let report = table.sync().await.unwrap();
    assert!(report.read > 0, "no listing: {report:?}");
    assert_eq!(report.added, 1);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_failure_is_told_with_the_kernels_words_and_blocks_nobody() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.want(route(&host, 1, 2));
    let bad = Route::new("10.1.9.0/24".parse().unwrap(), PROTOCOL)
        .via_gateway("203.0.113.1".parse().unwrap(), host.eth0.index);
    table.want(bad);
    table.want(route(&host, 2, 2));
    let report = table.sync().await.unwrap();
    assert_eq!(report.added, 2);
    assert_eq!(report.failures.len(), 1);
    let failure = &report.failures[0];
    assert_eq!(failure.key(), Object::from(bad).key());
    let eth0 = host.eth0.index;
    let shown = format!("cannot write route 10.1.9.0/24 via 203.0.113.1 on device {eth0}");
    assert_eq!(failure.to_string(), shown);
    assert_eq!(failure.source.message.as_deref(), Some("Nexthop has invalid gateway"));
    let news = timeout(Duration::from_millis(150), table.drifted()).await;
    assert!(news.is_err(), "a failure alone is no drift: {news:?}");
    assert_eq!(table.sync().await.unwrap().failures.len(), 1, "it is tried again");
    host.remove(route(&host, 1, 2)).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_appended_route_under_our_key_goes() {
    let mut host = Host::new().await;
    let mut table = table(&host).await;
    table.want(route(&host, 1, 2));
    table.sync().await.unwrap();
    let second = Route { protocol: FOREIGN, ..route(&host, 1, 66) };
    let body = second.replace().message().unwrap().body.to_vec();
    let append = flannel_netlink::Request::new(24, 0x400 | 0x800, &body);
    host.connection.apply_one(append).await.unwrap();
    assert_eq!(drift(&mut table).await.len(), 1);
    assert_eq!(table.sync().await.unwrap().removed, 1);
    let under_key: Vec<_> = routes(&mut host)
        .await
        .into_iter()
        .filter(|it| it.destination == second.destination)
        .collect();
    assert_eq!(under_key, [route(&host, 1, 2)]);
}
