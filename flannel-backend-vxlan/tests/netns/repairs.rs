//! Everything that others may remove or alter is back within a second, and nothing else is touched.

use std::time::Duration;

use flannel_core::{
    Peers,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{
    LinkChange, Monitor, Topic, delete_link,
    state::{ForwardingEntry, Neighbour, Object},
};

use tokio::{
    select,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::support::{DUAL, IPV4, Kernel, REPAIR, data, mac, world};

/// Does damage, sees that it shows, and that after the repair everything is as it was, to the last object.
async fn repaired(config: &str, damage: impl AsyncFn(&mut Kernel)) {
    let world = world(config).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    world.settle(0).await;
    let before = host.snapshot().await.unwrap();
    damage(&mut kernel).await;
    assert_ne!(before.difference(&host.snapshot().await.unwrap()), Vec::<String>::new());
    let mut left = Vec::new();
    let right = nodes.repair(async || {
        left = before.difference(&host.snapshot().await.unwrap());
        // The kernel's own routes to our addresses come some time after the addresses.
        left.retain(|line| !line.contains(" table 255 "));
        left.is_empty()
    });
    assert!(right.await, "{left:#?}");
    assert!(world.reaches(0, 1).await && world.reaches(0, 3).await);
    assert_eq!(nodes.sync(0).await.writes(), 0);
}

async fn delete_all(kernel: &mut Kernel, objects: impl IntoIterator<Item = Object>) {
    for object in objects {
        kernel.0.apply_one(object.delete()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_device_that_was_set_down() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            kernel.alter(name, LinkChange { up: Some(false), ..Default::default() }).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_device_that_was_set_down_and_up() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            for up in [false, true] {
                kernel.alter(name, LinkChange { up: Some(up), ..Default::default() }).await;
            }
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_mtu() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            kernel.alter(name, LinkChange { mtu: Some(1300), ..Default::default() }).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_mac() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            let change = LinkChange { mac: Some(mac("0e:66:66:66:66:66")), ..Default::default() };
            kernel.alter(name, change).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn removed_addresses() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            let addresses = kernel.addresses(name).await;
            delete_all(kernel, addresses.into_iter().map(Object::from)).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_added_address_inside_of_the_network() {
    repaired(IPV4, async |kernel| {
        let link = kernel.link("flannel.1").await.index;
        let more = flannel_netlink::state::Address::new(link, "10.244.66.0/32".parse().unwrap());
        kernel.0.apply_one(more.replace()).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn removed_routes() {
    repaired(DUAL, async |kernel| {
        for destination in ["10.244.2.0/24", "10.244.3.0/24", "fd00:10:244:2::/64"] {
            let route = kernel.route(destination).await.unwrap();
            delete_all(kernel, [route.into()]).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn replaced_routes() {
    repaired(DUAL, async |kernel| {
        let eth0 = kernel.link("eth0").await.index;
        for (destination, gateway) in
            [("10.244.2.0/24", "192.0.2.4"), ("fd00:10:244:2::/64", "2001:db8::4")]
        {
            let route = kernel.route(destination).await.unwrap();
            let wrong = route.via_gateway(gateway.parse().unwrap(), eth0);
            kernel.0.apply_one(wrong.replace()).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn removed_nexthops() {
    repaired(DUAL, async |kernel| {
        let nexthops = kernel.nexthops().await;
        delete_all(kernel, nexthops.into_iter().map(Object::from)).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn replaced_nexthops() {
    repaired(IPV4, async |kernel| {
        let [first, second, ..] = kernel.nexthops().await[..] else { panic!("too few") };
        let wrong = flannel_netlink::state::Nexthop { gateway: second.gateway, ..first };
        kernel.0.apply_one(wrong.replace()).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn removed_neighbours() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            let neighbours = kernel.neighbours(name).await;
            delete_all(kernel, neighbours.into_iter().map(Object::from)).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn replaced_neighbours() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            let there = kernel.neighbours(name).await[0];
            let wrong = Neighbour { mac: Some(mac("0e:66:66:66:66:66")), ..there };
            kernel.0.apply_one(wrong.replace()).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn removed_forwarding_entries() {
    repaired(DUAL, async |kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            let entries = kernel.forwarding(name).await;
            delete_all(kernel, entries.into_iter().map(Object::from)).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn replaced_forwarding_entries() {
    repaired(DUAL, async |kernel| {
        for (name, remote) in [("flannel.1", "192.0.2.66"), ("flannel-v6.1", "2001:db8::66")] {
            let there = kernel.forwarding(name).await[0];
            let wrong = ForwardingEntry { remote: Some(remote.parse().unwrap()), ..there };
            kernel.0.apply_one(wrong.replace()).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn deleted_devices_are_back_with_their_mac() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    for name in ["flannel.1", "flannel-v6.1"] {
        let before = kernel.link(name).await;
        delete_link(&mut kernel.0, before.index).await.unwrap();
        assert!(!world.reaches(0, 1).await);
        assert!(nodes.repair(async || world.reaches(0, 1).await).await, "{name}");
        assert_eq!(kernel.link(name).await.mac, before.mac);
        assert_eq!(kernel.neighbours(name).await.len(), 3);
        assert_eq!(kernel.forwarding(name).await.len(), 3);
    }
    assert_eq!(nodes.sync(0).await.writes(), 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_device_of_another_kind_in_the_place_of_ours() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let before = kernel.link("flannel.1").await;
    delete_link(&mut kernel.0, before.index).await.unwrap();
    let bridge = flannel_netlink::LinkSpec::new("flannel.1", flannel_netlink::LinkSpecKind::Bridge);
    flannel_netlink::ensure_link(&mut kernel.0, &bridge).await.unwrap();
    assert!(nodes.repair(async || world.reaches(0, 1).await).await);
    assert_eq!(kernel.link("flannel.1").await.mac, before.mac);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn packets_flow_when_the_card_is_up_again() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let index = Kernel::of(host).link("flannel.1").await.index;
    host.link_down().await.unwrap();
    nodes.sync(0).await;
    assert!(!world.reaches(0, 1).await);
    host.link_up().await.unwrap();
    // Nothing of ours was lost, so there may be nothing to repair.
    assert!(world.reaches(0, 1).await || nodes.repair(async || world.reaches(0, 1).await).await);
    assert_eq!(Kernel::of(host).link("flannel.1").await.index, index);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_new_network_card_costs_no_write() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let before = kernel.link("flannel.1").await.index;
    host.delete_uplink().await.unwrap();
    assert!(!world.reaches(0, 1).await);
    host.create_uplink().await.unwrap();
    assert!(world.reaches(0, 1).await, "the devices are not bound to the card");
    assert_eq!(nodes.sync(0).await.writes(), 0);
    assert_eq!(kernel.link("flannel.1").await.index, before);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn whoever_keeps_setting_another_mac_finds_it_put_back_and_never_published() {
    let world = world(IPV4).await;
    let nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let peers = nodes.peers(0, []);
    let (lease, mut network) = nodes.into_first();
    let ours = kernel.link("flannel.1").await.mac;
    let mut monitor =
        Monitor::open_for(world.testbed().host(0).namespace(), &[Topic::Links]).unwrap();
    let (mut found, mut tick) = (0, interval(Duration::from_millis(100)));
    // After a while in which nothing ran, a round has its whole time all the same.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    for _ in 0..ROUNDS {
        let change = LinkChange { mac: Some(mac("0e:66:66:66:66:66")), ..LinkChange::default() };
        kernel.alter("flannel.1", change).await;
        let calm = async {
            loop {
                network.drifted().await.unwrap();
                network.sync(&peers).await.unwrap();
            }
        };
        select! {
            _ = tick.tick() => {}
            () = calm => {}
        }
        found += u32::from(kernel.link("flannel.1").await.mac == ours);
    }
    let put_back = async {
        while kernel.link("flannel.1").await.mac != ours {
            network.drifted().await.unwrap();
            network.sync(&peers).await.unwrap();
        }
    };
    timeout(10 * REPAIR, put_back).await.expect("the last one is put back as well");
    assert!(found > ROUNDS * 8 / 10, "put back {found} times of {ROUNDS}");
    let mut changes = 0;
    while monitor.next_waiting().unwrap().is_some() {
        changes += 1;
    }
    // Each change and each repair is told a few times by the kernel: the device, and its state.
    assert!(changes < ROUNDS * 10, "{changes} changes in {ROUNDS} rounds");
    let attrs = world.backend(0).advertise(Some(&lease)).await.unwrap();
    assert_eq!(attrs, lease.attrs);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_lease_that_says_another_mac_is_told_once() {
    let world = world(IPV4).await;
    let nodes = Nodes::start(&world).await;
    let mut own = nodes.lease(0).clone();
    own.attrs.backend_data = data("0e:66:66:66:66:66");
    let peers = Peers::new(world.config(), own);
    let (_, mut network) = nodes.into_first();
    network.sync(&peers).await.unwrap();
    timeout(REPAIR, network.drifted()).await.expect("in time").unwrap();
    // The store may be away.
    network.sync(&peers).await.unwrap();
    assert!(timeout(Duration::from_millis(300), network.drifted()).await.is_err());
}

/// Longer than the repairs that are free at once.
const ROUNDS: u32 = 30;
