//! What a pod may send is exactly what fits.

use std::time::Duration;

use flannel_core::{
    Activity, FaultKind,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_testbed::{
    Host,
    probe::{self, Ping},
};

use crate::{
    nodes::Cluster,
    support::{DUAL, IPV4, IPV6, Kernel, REPAIR, world},
};

/// Packets that the host's kernel had to fragment, in both families.
fn fragmented(host: &Host) -> u64 {
    host.namespace()
        .run(|| {
            // Not /proc/net, which is the main thread's.
            let ipv4 = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let mut ip = ipv4.lines().filter(|line| line.starts_with("Ip:"));
            let (names, values) = (ip.next().unwrap(), ip.next().unwrap());
            let mut columns = names.split_whitespace().zip(values.split_whitespace());
            let (_, ipv4) = columns.find(|(name, _)| *name == "FragCreates").unwrap();
            let ipv6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let ipv6 = ipv6.lines().find_map(|line| line.strip_prefix("Ip6FragCreates"));
            ipv4.parse::<u64>().unwrap() + ipv6.unwrap().trim().parse::<u64>().unwrap()
        })
        .unwrap()
}

async fn exact(config: &str, mtu: u32) {
    let world = world(config).await;
    let nodes = Nodes::start(&world).await;
    let (_, network) = nodes.into_first();
    assert_eq!(network.mtu(), mtu);
    for ip in world.pod(1).endpoint().ips() {
        let limit = Ping::default().size(mtu as usize).unfragmented();
        world.pod(0).ping_with(ip, limit).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(fragmented(world.testbed().host(0)), 0, "it fits into one packet of the link");
    }
    // A byte more does not fit into the link. The family with the larger device would still take it.
    let ip = world.pod(1).endpoint().ips().last().unwrap();
    let patience = Duration::from_millis(300);
    let more = Ping::default().size(mtu as usize + 1).unfragmented().timeout(patience);
    world.pod(0).ping_with(ip, more).await.unwrap_err();
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn over_ipv4_a_packet_of_50_bytes_less_passes_whole() {
    exact(IPV4, 1450).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn over_ipv6_a_packet_of_70_bytes_less_passes_whole() {
    exact(IPV6, 1430).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn in_a_network_of_both_families_the_smaller_limit_counts() {
    exact(DUAL, 1430).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_devices_follow_the_link() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    host.set_mtu(1400).await.unwrap();
    let mut mtus =
        async || (kernel.link("flannel.1").await.mtu, kernel.link("flannel-v6.1").await.mtu);
    assert!(nodes.repair(async || mtus().await == (1350, 1330)).await);
    assert_eq!(nodes.into_first().1.mtu(), 1330);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_limit_is_told_as_soon_as_it_is_another() {
    let world = world(IPV4).await;
    let (_, mut network) = Nodes::start(&world).await.into_first();
    world.testbed().host(0).set_mtu(1400).await.unwrap();
    let noticed = async {
        while network.mtu() != 1350 {
            network.drifted().await.unwrap();
        }
    };
    tokio::time::timeout(REPAIR, noticed).await.expect("within a second");
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn options_that_are_changed_in_the_store_are_taken_up_without_a_lost_packet() {
    let cluster = Cluster::start(DUAL).await;
    let mut kernel = Kernel::of(cluster.testbed.host(0));
    let subnet = cluster.status(1).lease.unwrap().subnet;
    let blocks = [subnet.ipv4().unwrap().to_string(), subnet.ipv6().unwrap().to_string()];
    let with = |options: &str| DUAL.replace(r#""vxlan""#, &format!(r#""vxlan",{options}"#));
    let probes = probe::streams(&cluster.pods[0], &cluster.pods[1], 1000).unwrap();
    probes.flowing().await;
    let adopted = r#""MTU":1400,"Learning":true,"DirectRouting":true"#;
    cluster.store.set_config(Some(&with(adopted)));
    cluster.wait_for(0, |status| status.mtu == Some(1330)).await;
    for (name, mtu) in [("flannel.1", 1350), ("flannel-v6.1", 1330)] {
        assert_eq!(kernel.link(name).await.mtu, mtu);
        assert!(kernel.vxlan(name).await.learning);
    }
    let eth0 = kernel.link("eth0").await.index;
    assert_eq!(kernel.way(&blocks[0]).await.1, eth0, "direct now");
    assert_eq!(kernel.way(&blocks[1]).await.1, eth0);
    // A device has its VNI for its life.
    cluster.store.set_config(Some(&with(r#""VNI":7"#)));
    let is_said = |kind| kind == FaultKind::ConfigChanged;
    let status = cluster.wait_for(0, |it| it.faults.iter().any(|it| is_said(it.kind))).await;
    let text = status.fault(Activity::Config).unwrap().to_string();
    assert!(text.contains(r#""VNI":7"#) && text.contains(r#""MTU":1400"#), "{text}");
    assert_eq!((status.mtu, status.is_ready()), (Some(1330), true));
    cluster.store.set_config(Some(DUAL));
    cluster.wait_for(0, |status| status.mtu == Some(1430) && status.faults.is_empty()).await;
    assert_ne!(kernel.way(&blocks[0]).await.1, eth0, "encapsulated again");
    let report = probes.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}
