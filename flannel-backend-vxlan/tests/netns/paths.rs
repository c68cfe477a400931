//! What is known of the ways to peers becomes routes and features, and stays so.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use flannel_backend::{PathFacts, Paths, testing::KernelWorld};
use flannel_backend_vxlan::Vxlan;
use flannel_core::{
    Backend, Family, NetworkConfig, PeerFault,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{
    Features, delete_link,
    state::{IpFamily, Route, RouteKind},
};
use flannel_testbed::{
    Host,
    probe::{self, Ping},
    soon,
};

use crate::support::{DUAL, IPV4, Kernel, finder};

/// A world whose nodes all know `paths`.
async fn world(
    config: &str,
    paths: &Paths,
) -> KernelWorld<impl Fn(&Host, &NetworkConfig) -> Arc<dyn Backend>> {
    let paths = paths.clone();
    KernelWorld::new(config, move |host: &Host, config: &NetworkConfig| -> Arc<dyn Backend> {
        let vxlan = Vxlan::new(config, finder(host, config)).unwrap();
        Arc::new(vxlan.with_paths(paths.clone()))
    })
    .await
}

fn limits(address: IpAddr, bytes: u32) -> PathFacts {
    let mut facts = PathFacts::default();
    facts.mtus.insert(address, bytes);
    facts
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_route_to_a_peer_behind_a_small_link_says_so() {
    let paths = Paths::default();
    let world = world(IPV4, &paths).await;
    let mut nodes = Nodes::start(&world).await;
    let far = world.testbed().host(1);
    let ip = world.pod(1).ip();
    let full = || Ping::default().size(1450).timeout(Duration::from_millis(500));
    world.pod(0).ping_with(ip, full()).await.unwrap();
    far.set_path_mtu(1400).await.unwrap();
    world.pod(0).ping_with(ip, full()).await.unwrap_err();

    let mut kernel = Kernel::of(world.testbed().host(0));
    let block = world.blocks(1).to_string();
    paths.set(limits(far.ip(), 1400));
    let says = async |kernel: &mut Kernel, mtu| kernel.route(&block).await.unwrap().mtu == mtu;
    assert!(nodes.repair(async || says(&mut kernel, Some(1350)).await).await);
    assert_eq!(nodes.sync(0).await.writes(), 0);
    let exact = Ping::default().size(1350).unfragmented();
    world.pod(0).ping_with(ip, exact).await.unwrap();
    // What may be cut is cut in front of the tunnel, there; the way back is the other node's.
    let mut plain = kernel.route(&block).await.unwrap();
    plain.mtu = None;
    kernel.0.apply_one(plain.replace()).await.unwrap();
    assert!(nodes.repair(async || says(&mut kernel, Some(1350)).await).await, "put back");

    paths.set(PathFacts::default());
    assert!(nodes.repair(async || says(&mut kernel, None).await).await);
    let mut settings = kernel.route(&block).await.unwrap();
    settings.mtu = Some(1300);
    kernel.0.apply_one(settings.replace()).await.unwrap();
    assert!(nodes.repair(async || says(&mut kernel, None).await).await, "settings of others go");
    assert_eq!(nodes.sync(0).await.writes(), 0);
    far.set_path_mtu(1500).await.unwrap();
    world.pod(0).ping_with(ip, full()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn checksums_that_get_damaged_are_computed_before_whatever_others_do() {
    let paths = Paths::default();
    let world = world(DUAL, &paths).await;
    let mut nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let mut features = Features::open(host.namespace()).unwrap();
    let mut leaves = async |kernel: &mut Kernel, name| {
        let link = kernel.find(name).await?;
        features.get(link.index, Features::TX_CHECKSUM).await.ok()?
    };
    assert_eq!(leaves(&mut kernel, "flannel.1").await, Some(true), "as the kernel makes it");

    let mut facts = PathFacts::default();
    facts.software_checksums = BTreeSet::from([IpFamily::V4]);
    paths.set(facts);
    assert!(nodes.repair(async || leaves(&mut kernel, "flannel.1").await == Some(false)).await);
    assert_eq!(leaves(&mut kernel, "flannel-v6.1").await, Some(true), "the other is not asked for");
    assert_eq!(nodes.sync(0).await.writes(), 0);

    let mut meddler = Features::open(host.namespace()).unwrap();
    for _ in 0..3 {
        let link = kernel.link("flannel.1").await.index;
        meddler.set(link, Features::TX_CHECKSUM, true).await.unwrap();
        assert!(nodes.repair(async || leaves(&mut kernel, "flannel.1").await == Some(false)).await);
    }
    let link = kernel.link("flannel.1").await.index;
    delete_link(&mut kernel.0, link).await.unwrap();
    assert!(nodes.repair(async || leaves(&mut kernel, "flannel.1").await == Some(false)).await);
    assert_ne!(kernel.link("flannel.1").await.index, link, "it is a new one");
    assert!(world.reaches(0, 1).await);

    // Nobody wants it any more, and it stays as it is: whoever switched it off may have had a reason.
    paths.set(PathFacts::default());
    nodes.sync(0).await;
    assert_eq!(leaves(&mut kernel, "flannel.1").await, Some(false));
}

/// Leads what host 0 sends to host 1 through host 3, which takes packets of `mtu` bytes.
async fn lead_through_a_router([from, to, router]: [&Host; 3], mtu: u32) {
    for (to, through) in to.addresses().iter().zip(router.addresses()) {
        let mut kernel = Kernel::of(from);
        let link = kernel.link("eth0").await.index;
        let single = Route::new(to.ip().into(), 4).via_gateway(through.ip(), link);
        kernel.0.apply_one(single.replace()).await.unwrap();
        let mut kernel = Kernel::of(router);
        let mut narrow = Route::new(to.ip().into(), 4).direct(kernel.link("eth0").await.index);
        narrow.mtu = Some(mtu);
        kernel.0.apply_one(narrow.replace()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_path_that_is_too_narrow_for_ipv6_costs_that_family_alone_which_senders_learn_at_once() {
    let paths = Paths::default();
    let world = world(DUAL, &paths).await;
    let mut nodes = Nodes::start(&world).await;
    let hosts = [0, 1, 3].map(|n| world.testbed().host(n));
    lead_through_a_router(hosts, 1340).await;
    let ips: Vec<_> = world.pod(1).endpoint().ips().collect();
    let ping = |ip, size, seconds| {
        let how = Ping::default().size(size).unfragmented().timeout(Duration::from_secs(seconds));
        world.pod(0).ping_with(ip, how)
    };
    // Over IPv4 the router makes fragments of outer packets.
    ping(ips[0], 1450, 5).await.unwrap();
    // IPv6 needs 1280 bytes, and nobody makes fragments.
    ping(ips[1], 1200, 5).await.unwrap();
    ping(ips[1], 1280, 1).await.unwrap_err();
    paths.set(limits(hosts[1].ipv6().unwrap().into(), 1340));
    let report = nodes.sync(0).await;
    let (family, path_mtu, needed) = (Family::Ipv6, 1340, 1350);
    let fault = PeerFault::PathTooNarrow { family, path_mtu, needed };
    let found: Vec<_> = report.problems.iter().map(|it| (it.peer, it.fault.clone())).collect();
    assert_eq!(found, [(world.subnet(1), fault)]);
    let mut kernel = Kernel::of(hosts[0]);
    assert_eq!(kernel.route("fd00:10:244:2::/64").await.unwrap().kind, RouteKind::Unreachable);
    let told = world.pod(0).namespace().run(|| {
        // The kernel would try for two minutes.
        let connected = TcpStream::connect_timeout(&(ips[1], 9).into(), Duration::from_secs(60));
        connected.unwrap_err().kind()
    });
    assert_eq!(told.unwrap(), ErrorKind::NetworkUnreachable);
    ping(ips[0], 1450, 5).await.unwrap();
    assert_eq!(nodes.sync(0).await.writes(), 0);
    // As soon as the path takes more.
    let stream = probe::stream(world.pod(0), ips[1], 100).unwrap();
    paths.set(PathFacts::default());
    assert_eq!(nodes.sync(0).await.problems, []);
    soon(stream.flowing()).await;
}
