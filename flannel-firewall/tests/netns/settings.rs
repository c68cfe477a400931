//! Forwarding, and what a machine may lack.

use std::time::Duration;

use flannel_firewall::{Firewall, FirewallOptions};
use tokio::time::timeout;

use crate::world::{Keeper, World, scope};

const BOTH: &str = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
const OFF: &str =
    "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn forwarding_is_switched_on_and_stays_on() {
    let world = World::new(Keeper::Nftables).await;
    world.run(OFF).await;
    let mut firewall = world.start().await;
    assert_eq!(world.run(BOTH).await, "1\n1");
    world.run(OFF).await;
    let on = world.repair(&mut firewall, async || world.run(BOTH).await == "1\n1").await;
    assert!(on, "it is back within a second");
    let idle = timeout(Duration::from_millis(200), firewall.drifted()).await;
    assert!(idle.is_err(), "our own write is no drift");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn forwarding_is_left_alone_if_that_is_asked_for() {
    let world = World::new(Keeper::Nftables).await;
    world.run(OFF).await;
    let options = FirewallOptions { forwarding: false, ..world.options() };
    let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
    assert!(firewall.sync(&scope()).await.is_exact());
    assert_eq!(world.run(BOTH).await, "0\n0");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_family_without_its_program_is_named_and_the_other_served() {
    let world = World::new(Keeper::IptablesNft).await;
    let folder = tempfile::tempdir().unwrap();
    for program in ["iptables", "iptables-save", "iptables-restore"] {
        let target = format!("/usr/sbin/{}", program.replace("iptables", "iptables-nft"));
        std::os::unix::fs::symlink(target, folder.path().join(program)).unwrap();
    }
    let options = FirewallOptions { tool_folders: vec![folder.path().into()], ..world.options() };
    let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
    let report = firewall.sync(&scope()).await;
    assert_eq!(report.faults.len(), 1, "{:?}", report.faults);
    assert!(report.faults[0].to_string().contains("ip6tables is not installed; install it"));
    assert!(world.ours().await.contains("10.244.1.0/24"));
}
