//! What happens to etcd and to the leases in it, and what nodes and pods notice: real etcd, real nodes, real packets. Each test
//! prints what the node did and in how long; docs/faults.md has that as a table.

use std::{fs, net::IpAddr, time::Duration};

use flannel_testbed::eventually;
use tokio::time::{Instant, sleep};

use super::etcd_members::{NODES, TTL, Traffic, World, ip};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn etcd_is_killed_for_three_lives_of_a_lease() {
    let mut world = World::with_members(1).await;
    let pods = world.with_two_nodes().await;
    let (traffic, subnets) = (Traffic::between(&pods), [world.subnet(0), world.subnet(1)]);
    world.kill_member(0).await;
    let killed = Instant::now();
    world.says(0, "cannot trust the lease").await;
    println!("killed: the node doubted its lease after {:?}", killed.elapsed());
    sleep(Duration::from_secs(3 * TTL).saturating_sub(killed.elapsed())).await;
    world.start_member(0).await;
    let back = Instant::now();
    world.start(2).await;
    let this = &world;
    eventually(async || this.knows(0, 2).await && this.knows(1, 2).await).await;
    println!("killed: both knew a node that joined then {:?} after etcd was back", back.elapsed());
    assert_eq!([world.subnet(0), world.subnet(1)], subnets);
    assert!(!subnets.contains(&world.subnet(2)));
    assert_eq!(traffic.lost("killed").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_leader_moves_and_then_dies() {
    let mut world = World::with_members(3).await;
    let pods = world.with_two_nodes().await;
    let (traffic, subnets) = (Traffic::between(&pods), [world.subnet(0), world.subnet(1)]);
    let status = world.etcdctl(&["endpoint", "status"]).await;
    // ENDPOINT, ID, version, size, leader, ...
    let members: Vec<(String, bool)> = status
        .lines()
        .map(|line| line.split(", ").map(str::to_owned).collect::<Vec<_>>())
        .map(|columns| (columns[1].clone(), columns[4] == "true"))
        .collect();
    let leader = members.iter().position(|(_, leads)| *leads).expect("there is a leader");
    let next = (leader + 1) % 3;
    let moved = Instant::now();
    let endpoint = world.client_url(leader);
    world.etcdctl(&["--endpoints", &endpoint, "move-leader", &members[next].0]).await;
    world.start(2).await;
    let this = &world;
    eventually(async || this.knows(0, 2).await && this.knows(1, 2).await).await;
    println!("leader moved: both knew a node that joined {:?} after that", moved.elapsed());

    world.kill_member(next).await;
    let died = Instant::now();
    world.kill(2).await;
    let key = world.key(2);
    eventually(async || world.has_forgotten(&key).await).await;
    println!("leader died: the lease of a dead node was over {:?} after that", died.elapsed());
    assert_eq!([world.subnet(0), world.subnet(1)], subnets);
    assert_eq!(traffic.lost("leader moved").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_is_cut_off_from_etcd_during_a_compaction() {
    let mut world = World::with_members(1).await;
    world.ttl = 60;
    let pods = world.with_two_nodes().await;
    let traffic = Traffic::between(&pods);
    // The node's packets arrive, and nothing comes back: what it sends is not refused.
    let IpAddr::V4(node) = world.host(0).ip() else { unreachable!("hosts have IPv4") };
    ip(world.host(NODES), &["route", "add", "blackhole", &node.to_string()]).await;
    world.start(2).await;
    let this = &world;
    eventually(async || this.knows(1, 2).await).await;
    assert!(!world.knows(0, 2).await, "it is cut off");
    world.says(0, "cannot watch leases").await;
    for n in 0..20 {
        world.etcdctl(&["put", "/elsewhere", &n.to_string()]).await;
    }
    let header = world.etcdctl(&["get", "/elsewhere", "--write-out", "fields"]).await;
    let revision = header.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
    world.etcdctl(&["compaction", revision]).await;
    ip(world.host(NODES), &["route", "del", "blackhole", &node.to_string()]).await;
    let healed = Instant::now();
    let this = &world;
    eventually(async || this.knows(0, 2).await).await;
    println!(
        "compaction: it knew who had joined meanwhile {:?} after it was back",
        healed.elapsed()
    );
    assert_eq!(traffic.lost("compaction").await, 0);
}

/// Takes a node's lease away, and returns after how long it has it again.
async fn until_held_again(world: &mut World, args: &[&str]) -> Duration {
    let (key, subnet) = (world.key(0), world.subnet(0));
    let (value, lease) = world.stored(&key).await.expect("it holds a lease");
    let taken = Instant::now();
    world.etcdctl(args).await;
    world.says(0, "lease lost").await;
    let mut held = None;
    let this = &*world;
    eventually(async || {
        held = this.stored(&key).await.filter(|(_, new)| *new != lease);
        held.is_some()
    })
    .await;
    assert_eq!((held.unwrap().0, world.subnet(0)), (value, subnet));
    taken.elapsed()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_lease_is_revoked_and_a_key_is_deleted() {
    for fault in ["revoked", "deleted"] {
        let mut world = World::with_members(1).await;
        world.ttl = 60;
        let pods = world.with_two_nodes().await;
        let traffic = Traffic::between(&pods);
        traffic.0[0].flowing().await;
        let key = world.key(0);
        let (_, lease) = world.stored(&key).await.unwrap();
        let lease = format!("{:x}", lease.parse::<i64>().unwrap());
        let args: &[&str] =
            if fault == "revoked" { &["lease", "revoke", &lease] } else { &["del", &key] };
        let again = until_held_again(&mut world, args).await;
        println!("{fault}: it had its lease again after {again:?}, with etcdctl's own time");
        assert_eq!(traffic.lost(fault).await, 0);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_key_is_replaced_by_somebody_else_and_by_garbage() {
    let stranger = r#"{"PublicIP":"192.0.2.250","PublicIPv6":null,"BackendType":"host-gw"}"#;
    for (fault, value) in [("somebody else", stranger), ("garbage", "{\"PublicIP\":")] {
        let mut world = World::with_members(1).await;
        world.ttl = 60;
        let pods = world.with_two_nodes().await;
        world.start(2).await;
        let traffic = Traffic::between(&pods);
        let (key, subnet) = (world.key(2), world.subnet(2));
        let replaced = Instant::now();
        world.etcdctl(&["put", &key, value]).await;
        let this = &world;
        eventually(async || this.subnet(2) != subnet).await;
        println!("{fault}: it had another subnet after {:?}", replaced.elapsed());
        eventually(async || this.knows(0, 2).await && this.knows(1, 2).await).await;
        println!("{fault}: its peers knew that after {:?}", replaced.elapsed());
        let (now, _) = world.stored(&key).await.expect("it is not deleted");
        assert_eq!(now, format!("{value:?}"), "it is not overwritten");
        assert_eq!(traffic.lost(fault).await, 0);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_short_life_is_renewed_in_time() {
    let mut world = World::with_members(1).await;
    let pods = world.with_two_nodes().await;
    let (traffic, key) = (Traffic::between(&pods), world.key(0));
    let before = world.stored(&key).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4 * TTL) {
        assert_eq!(world.stored(&key).await, before, "the lease is the same all the time");
        sleep(Duration::from_millis(500)).await;
    }
    println!("short life: a lease of {TTL} s was held for {:?}", start.elapsed());
    assert_eq!(traffic.lost("short life").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_starts_while_etcd_is_down() {
    let mut world = World::with_members(1).await;
    let pods = world.with_two_nodes().await;
    let (traffic, subnets) = (Traffic::between(&pods), [world.subnet(0), world.subnet(1)]);
    world.kill_member(0).await;
    world.kill(0).await;
    let before = fs::read_to_string(world.subnet_file(0)).unwrap();
    world.spawn(0);
    world.says(0, "cannot read the network config, retrying").await;
    sleep(Duration::from_secs(2 * TTL)).await;
    let output = world.nodes[0].as_ref().unwrap().output().join("\n");
    assert!(!output.contains("ready"), "it says nothing that it does not know: {output}");
    assert_eq!(fs::read_to_string(world.subnet_file(0)).unwrap(), before);
    world.start_member(0).await;
    let back = Instant::now();
    world.says(0, " ready subnet=").await;
    println!("down at start: it was ready {:?} after etcd was back", back.elapsed());
    assert_eq!([world.subnet(0), world.subnet(1)], subnets);
    assert_eq!(traffic.lost("down at start").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_machine_is_cloned_with_its_name() {
    let mut world = World::with_members(1).await;
    world.ttl = 60;
    let pods = world.with_two_nodes().await;
    let traffic = Traffic::between(&pods);
    let state = |n: usize| world.folder.path().join(format!("state{n}"));
    fs::create_dir(state(2)).unwrap();
    fs::copy(state(0).join("node-id"), state(2).join("node-id")).unwrap();
    let started = Instant::now();
    world.spawn(2);
    let said = world.says(2, "give one of them another name").await;
    println!("cloned: told after {:?}: {said}", started.elapsed());
    assert!(said.contains(&world.host(0).ip().to_string()));
    assert!(!world.subnet_file(2).exists());
    assert_eq!(traffic.lost("cloned").await, 0);
    world.kill(2).await;
    fs::remove_file(world.folder.path().join("state2/node-id")).unwrap();
    world.start(2).await;
}
