//! Forwarding, and what a machine may lack.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use flannel_firewall::{Firewall, FirewallOptions};
use flannel_netlink::{Namespace, link_by_name};
use flannel_testbed::soon;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{sleep, timeout};

use crate::world::{Mode, World, scope};

const BOTH: &str = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
const OFF: &str =
    "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn forwarding_is_switched_on_and_stays_on() {
    let world = World::new(Mode::Nftables).await;
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
    let world = World::new(Mode::Nftables).await;
    world.run(OFF).await;
    let options = FirewallOptions { forwarding: false, ..world.options() };
    let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
    assert!(firewall.sync(&scope()).await.is_exact());
    assert_eq!(world.run(BOTH).await, "0\n0");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_family_without_its_program_is_named_and_the_other_served() {
    let world = World::new(Mode::IptablesNft).await;
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

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_came_from_a_router_stays_when_forwarding_is_switched_on() {
    let world = World::new(Mode::Nftables).await;
    world.run(OFF).await;
    world.run("echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra").await;
    let router = world.outside();
    let index = link_by_name(&mut router.connect().unwrap(), "eth0").await.unwrap().unwrap().index;
    let seen = async || {
        let route = world.run("ip -6 route show default proto ra").await;
        let address = world.run("ip -6 address show dev eth0 dynamic").await;
        !route.is_empty() && address.contains("2001:db8:77:")
    };
    let learnt = async {
        while !seen().await {
            advertise(router.namespace(), index);
            sleep(Duration::from_millis(200)).await;
        }
    };
    soon(learnt).await;
    let _firewall = world.start().await;
    assert_eq!(world.run(BOTH).await, "1\n1");
    assert!(seen().await, "{}", world.run("ip -6 route; ip -6 address show dev eth0").await);
    assert_eq!(world.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").await, "2");
    // And the kernel goes on to listen: what somebody removes is back with the next one.
    world.run("ip -6 route delete default proto ra").await;
    soon(async {
        while !seen().await {
            advertise(router.namespace(), index);
            sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}

/// Sends a router advertisement (RFC 4861, section 4.2) out of the device with this index: a default route for 30 minutes, and a
/// prefix for addresses.
fn advertise(router: &Namespace, index: u32) {
    let mut packet = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08];
    packet.extend([0; 8]);
    packet.extend([3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0]);
    packet.extend("2001:db8:77::".parse::<Ipv6Addr>().unwrap().octets());
    let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
    let sent = router.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_multicast_hops_v6(255)?;
        socket.set_multicast_if_v6(index)?;
        socket.send_to(&packet, &all_nodes.into())
    });
    // Until its link-local address is usable the router has nothing to send from.
    let _ = sent.unwrap();
}
