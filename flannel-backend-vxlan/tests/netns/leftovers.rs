//! What another backend or another VNI of ours has left, and what is somebody else's.

use std::sync::Arc;

use flannel_backend_hostgw::HostGw;
use flannel_backend_vxlan::Vxlan;
use flannel_core::{
    Backend, Lease, NetworkConfig,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{
    LinkSpec, LinkSpecKind, ensure_link,
    state::{Address, Vxlan as Attributes},
};
use flannel_testbed::Host;

use crate::support::{DUAL, IPV4, Kernel, finder, world};

/// Runs another backend on host 0 after the first one, with the same peers as seen by it.
async fn switched(world: &impl NetworkWorld, nodes: &Nodes, backend: Arc<dyn Backend>, kind: &str) {
    let attrs = backend.advertise(Some(nodes.lease(0))).await.unwrap();
    let lease = Lease::new(world.subnet(0), attrs);
    let mut network = backend.start(&lease).await.unwrap();
    let peers = (1..4).map(|n| {
        crate::support::changed(nodes.lease(n), |attrs| attrs.backend_type = kind.to_owned().into())
    });
    let mut known = flannel_core::Peers::new(world.config(), lease);
    known.fold(flannel_core::LeaseEvent::reset(peers));
    let report = network.sync(&known).await.unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(network.sync(&known).await.unwrap().writes(), 0);
}

fn hostgw(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    Arc::new(HostGw::new(config, finder(host, config)).unwrap())
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn from_vxlan_to_host_gw_and_back() {
    let world = world(DUAL).await;
    let nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let (v4, v6) = (kernel.link("flannel.1").await.mac, kernel.link("flannel-v6.1").await.mac);
    switched(&world, &nodes, hostgw(host, &world.config()), "host-gw").await;
    assert_eq!(kernel.find("flannel.1").await, None);
    assert_eq!(kernel.find("flannel-v6.1").await, None);
    let eth0 = kernel.link("eth0").await.index;
    assert_eq!(kernel.way("10.244.2.0/24").await, ("192.0.2.2".parse().unwrap(), eth0));
    assert_eq!(kernel.nexthops().await.len(), 6);
    switched(&world, &nodes, world.backend(0), "vxlan").await;
    assert_eq!(
        (kernel.link("flannel.1").await.mac, kernel.link("flannel-v6.1").await.mac),
        (v4, v6)
    );
    assert_eq!(kernel.nexthops().await.len(), 6, "none through the card is left");
    assert!(kernel.nexthops().await.iter().all(|nexthop| nexthop.link != eth0));
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn from_one_vni_to_another() {
    let world = world(DUAL).await;
    let nodes = Nodes::start(&world).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let mac = kernel.link("flannel.1").await.mac;
    let json = DUAL.replace("\"vxlan\"", "\"vxlan\",\"VNI\":2");
    let config: NetworkConfig = json.parse().unwrap();
    let backend = Arc::new(Vxlan::new(&config, finder(host, &config)).unwrap());
    switched(&world, &nodes, backend, "vxlan").await;
    assert_eq!(kernel.find("flannel.1").await, None);
    assert_eq!(kernel.find("flannel-v6.1").await, None);
    assert_eq!(kernel.link("flannel.2").await.mac, mac, "that of the previous lease");
    assert_eq!(kernel.neighbours("flannel.2").await.len(), 3);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn devices_that_are_not_provably_ours_stay() {
    let world = world(IPV4).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    // The name, the VNI, and an address: each has to say that it is ours.
    for (n, (name, vni, addresses)) in [
        ("flannel.90", 90, &["10.99.0.0/32"][..]),
        ("flannel.91", 91, &[]),
        ("flannel.92", 92, &["10.244.9.0/32", "192.0.2.200/32"]),
        ("flannel.93", 94, &["10.244.9.1/32"]),
        ("vxlan.95", 95, &["10.244.9.2/32"]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut vxlan = Attributes::new(vni);
        vxlan.port = Some(5000 + n as u16);
        let spec = LinkSpec::new(name, LinkSpecKind::Vxlan(vxlan));
        let (link, _) = ensure_link(&mut kernel.0, &spec).await.unwrap();
        for address in addresses {
            let address = Address::new(link.index, address.parse().unwrap());
            kernel.0.apply_one(address.replace()).await.unwrap();
        }
    }
    let before = world.snapshot(0).await;
    let nodes = Nodes::start(&world).await;
    nodes.into_first().1.teardown().await.unwrap();
    assert_eq!(world.snapshot(0).await, before);
}
