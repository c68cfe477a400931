use std::{os::fd::AsRawFd, time::Duration};

use flannel_backend::filter::{self, Filter, Label};
use flannel_netlink::{LinkChange, alter_link};
use tokio::time::timeout;

use super::*;
use crate::bpf::detour::LOOPBACK;

/// A namespace with a loopback device for a network card.
async fn place() -> Namespace {
    let namespace = Namespace::create().unwrap();
    let mut connection = Connection::open(&namespace).unwrap();
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    alter_link(&mut connection, LOOPBACK, &up).await.unwrap();
    namespace
}

fn orders(peers: u8) -> Orders {
    let endpoint = |n: u8| {
        let block = format!("10.3.{n}.0/24").parse().unwrap();
        (block, format!("192.0.2.{n}:8285").parse().unwrap())
    };
    Orders {
        own: "10.3.0.0-24".parse().unwrap(),
        link: LOOPBACK,
        local: vec![[192, 0, 2, 1].into()],
        port: 8285,
        source_check: true,
        path_mtu_discovery: false,
        endpoints: (2..2 + peers).map(endpoint).collect(),
    }
}

async fn open(namespace: &Namespace) -> Engine {
    Engine::open(namespace, LOOPBACK, 8285, &marks(8285)).await.unwrap()
}

fn marks(port: u16) -> Marks {
    Marks::new(&["10.3.0.0/16".parse().unwrap()], port, "flannel0")
}

async fn the_filter(namespace: &Namespace) -> Option<Filter> {
    Hook::new(LOOPBACK, 8285, &marks(8285))
        .find(&mut Connection::open(namespace).unwrap())
        .await
        .unwrap()
}

/// CAP_BPF and CAP_NET_ADMIN are enough for this.
#[test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
fn the_kernel_takes_the_programs() {
    let programs = Programs::load().unwrap();
    assert_eq!(programs.content().unwrap(), Content::default());
    assert_eq!(programs.config().unwrap(), None);
    assert_eq!(programs.counts().unwrap(), Counts::default());
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn each_change_of_a_peer_is_one_entry() {
    let namespace = place().await;
    let mut engine = open(&namespace).await;
    let changes = engine.sync(&orders(10), 7).await.unwrap();
    // Blocks, addresses, settings, the detour device, and on both devices qdisc and filter.
    assert_eq!(changes, Changes { added: 10 + 10 + 6, ..Changes::default() });
    assert_eq!(engine.sync(&orders(10), 7).await.unwrap(), Changes::default());
    let changes = engine.sync(&orders(11), 7).await.unwrap();
    assert_eq!(changes, Changes { added: 2, ..Changes::default() });
    let changes = engine.sync(&orders(10), 8).await.unwrap();
    assert_eq!(changes, Changes { replaced: 1, removed: 2, ..Changes::default() });
    assert_eq!(
        engine.programs.content().unwrap(),
        Content::desired(&orders(10).endpoints, &Default::default())
    );
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn maps_that_somebody_altered_are_put_right_within_a_second() {
    let namespace = place().await;
    let mut engine = open(&namespace).await;
    engine.sync(&orders(10), 7).await.unwrap();
    let whole = engine.programs.content().unwrap();
    let mut less = whole.clone();
    let key = *less.endpoints4.keys().next().unwrap();
    less.endpoints4.insert(key, [9; 8]);
    less.peers.pop_first();
    let began = Instant::now();
    for step in whole.diff(&less) {
        engine.programs.take(&step).unwrap();
    }
    timeout(Duration::from_secs(1), engine.drifted()).await.expect("a second").unwrap();
    let changes = engine.sync(&orders(10), 7).await.unwrap();
    assert_eq!(changes, Changes { added: 1, replaced: 1, removed: 0 });
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(engine.programs.content().unwrap(), whole);
    // And then nothing is wrong any more.
    assert!(timeout(Duration::from_secs(1), engine.drifted()).await.is_err());
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn the_next_process_takes_over_programs_and_maps() {
    let namespace = place().await;
    let mut engine = open(&namespace).await;
    engine.sync(&orders(10), 7).await.unwrap();
    let (filter, program) = (the_filter(&namespace).await, engine.program());
    // The route, which has another owner, would hold on to the program.
    let send = crate::bpf::sys::Program::by_id(engine.programs.sending_number()).unwrap();
    drop(engine);
    let mut engine = open(&namespace).await;
    assert_eq!(engine.program(), program);
    assert_eq!(engine.sync(&orders(10), 7).await.unwrap(), Changes::default());
    assert_eq!(the_filter(&namespace).await, filter);
    let id = engine.programs.sending_number();
    drop((send, engine));
    // The namespace in which it was tried holds on to it for a moment.
    let gone = async {
        while crate::bpf::sys::Program::by_id(id).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.unwrap();
    // Without the route's one: it is loaded again, with the same maps.
    let mut engine = open(&namespace).await;
    assert_ne!(engine.program(), program);
    let changes = engine.sync(&orders(10), 7).await.unwrap();
    assert_eq!(changes, Changes { replaced: 1, ..Changes::default() });
    assert_eq!(the_filter(&namespace).await, filter);
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn programs_of_another_version_are_replaced_where_they_stand() {
    let namespace = place().await;
    let mut engine = open(&namespace).await;
    engine.sync(&orders(10), 7).await.unwrap();
    let old = the_filter(&namespace).await.unwrap();
    let text = old.label.as_ref().unwrap();
    let label = Label { version: 7, ..text.parse().unwrap() }.to_string();
    let program = engine.programs.receiving().0.as_raw_fd();
    let request = filter::replace(LOOPBACK, 8285, program, &label);
    Connection::open(&namespace).unwrap().apply_one(request).await.unwrap();
    drop(engine);
    let mut engine = open(&namespace).await;
    // Nothing is done before the new maps are full.
    assert_eq!(the_filter(&namespace).await.unwrap().label, Some(label));
    let changes = engine.sync(&orders(10), 7).await.unwrap();
    // The filters are replaced where they stand.
    assert_eq!(changes, Changes { added: 21, replaced: 2, removed: 0 });
    let new = the_filter(&namespace).await.unwrap();
    assert_eq!(new.label, old.label);
    assert_ne!(new.program, old.program);
    // The qdisc is ours still.
    engine.teardown().await.unwrap();
    let request = filter::create_clsact(LOOPBACK);
    assert_eq!(Connection::open(&namespace).unwrap().apply_one(request).await, Ok(()));
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn anothers_filter_in_our_place_is_left_there() {
    let namespace = place().await;
    let other = Programs::load().unwrap();
    let mut connection = Connection::open(&namespace).unwrap();
    let request = filter::replace(LOOPBACK, 8285, other.receiving().0.as_raw_fd(), "theirs");
    connection.apply_one(filter::create_clsact(LOOPBACK)).await.unwrap();
    connection.apply_one(request).await.unwrap();
    let error = Engine::open(&namespace, LOOPBACK, 8285, &marks(8285)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "another program's filter is at priority 8285, handle 8285 of device 1"
    );
    assert!(!remove_leftover(&namespace, LOOPBACK, 8285, &marks(8285)).await.unwrap());
    assert_eq!(the_filter(&namespace).await.unwrap().label.as_deref(), Some("theirs"));
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn two_networks_share_a_network_card() {
    let namespace = place().await;
    let mut one = open(&namespace).await;
    one.sync(&orders(3), 7).await.unwrap();
    let mut two = Engine::open(&namespace, LOOPBACK, 9000, &marks(9000)).await.unwrap();
    two.sync(&Orders { port: 9000, ..orders(5) }, 8).await.unwrap();
    // The first one's qdisc stays with the second one's filter on it.
    one.teardown().await.unwrap();
    let mut connection = Connection::open(&namespace).unwrap();
    assert!(the_filter(&namespace).await.is_none());
    let other = Hook::new(LOOPBACK, 9000, &marks(9000));
    assert!(other.find(&mut connection).await.unwrap().is_some());
    two.teardown().await.unwrap();
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn to_watch_over_some_peers_costs_next_to_nothing() {
    let namespace = place().await;
    let mut engine = open(&namespace).await;
    engine.sync(&orders(10), 7).await.unwrap();
    let before = processor_time();
    assert!(timeout(Duration::from_secs(3), engine.drifted()).await.is_err());
    let took = processor_time() - before;
    println!("3 s of watching: {took:?}");
    // Of a build that is not optimized.
    assert!(took < Duration::from_millis(5), "{took:?}");
    // So little that the maps are read at each look. One with a place for each peer that there might be takes a millisecond.
    let waits = (0..3).map(|_| {
        engine.next_check = Instant::now();
        assert!(!engine.is_altered().unwrap());
        engine.next_check - Instant::now()
    });
    let wait = waits.min().unwrap();
    assert!(wait <= LOOK_EVERY, "{wait:?}");
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn ten_thousand_peers_cost_a_five_thousandth_of_the_time_to_watch() {
    let namespace = place().await;
    let mut engine = open(&namespace).await;
    let mut orders = orders(0);
    for n in 0..10_000_u32 {
        let block = std::net::Ipv4Addr::from(0x0a00_0000 + (n << 8));
        let at = std::net::Ipv4Addr::from(0xc600_0000 + n);
        orders.endpoints.insert(format!("{block}/24").parse().unwrap(), (at, 8285).into());
    }
    let began = Instant::now();
    engine.sync(&orders, 7).await.unwrap();
    let filled = began.elapsed();
    let began = Instant::now();
    engine.next_check = began;
    engine.look_after(Duration::ZERO).unwrap();
    assert!(timeout(Duration::from_millis(400), engine.drifted()).await.is_err());
    let wait = engine.next_check - began;
    println!("10,000 peers: filled in {filled:?}, checked in {:?}", wait / CHECK_SHARE);
    assert!(wait > LOOK_EVERY, "{wait:?}");
}
