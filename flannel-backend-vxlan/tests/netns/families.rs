//! What goes wrong with one address family costs the other nothing.

use flannel_core::{
    FaultKind, Lease, LeaseEvent, Peers,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{LinkChange, state::MacAddress};

use crate::support::{DUAL, IPV4, Kernel, mac_of, world};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn ipv4_starts_on_a_card_too_small_for_ipv6_which_is_reported() {
    let world = world(DUAL).await;
    let host = world.testbed().host(0);
    host.set_mtu(1349).await.unwrap();
    let backend = world.backend(0);
    let lease = Lease::new(world.subnet(0), backend.advertise(None).await.unwrap());
    let mut network = backend.start(&lease).await.unwrap();
    assert_eq!(network.mtu(), 1299, "what IPv4 alone can carry");
    let report = network.sync(&Peers::new(world.config(), lease.clone())).await.unwrap();
    let faults: Vec<_> = report.faults.iter().map(|it| (it.kind, it.object.as_str())).collect();
    assert_eq!(faults, [(FaultKind::FamilyUnusable, "IPv6")]);
    assert!(report.faults[0].reason.contains("needs 1350"), "{:?}", report.faults);
    assert_eq!(Kernel::of(host).find("flannel-v6.1").await, None);
    // As soon as the card takes more, IPv6 is there.
    host.set_mtu(1350).await.unwrap();
    network.drifted().await.unwrap();
    let report = network.sync(&Peers::new(world.config(), lease)).await.unwrap();
    assert_eq!(report.faults, []);
    assert_eq!(Kernel::of(host).link("flannel-v6.1").await.mtu, 1280);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_highest_vni_has_devices_whose_names_the_kernel_takes() {
    let config = DUAL.replace(r#""vxlan""#, r#""vxlan","VNI":16777215"#);
    let world = world(&config).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    for name in ["fl-v4.16777215", "fl-v6.16777215"] {
        assert_eq!(kernel.vxlan(name).await.vni, 16_777_215);
    }
    assert!(world.reaches(0, 1).await);
    assert_eq!(nodes.sync(0).await.writes(), 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn of_two_nodes_with_one_ethernet_address_the_later_takes_another() {
    let world = world(IPV4).await;
    // As if two machines were copies of one.
    let copied: MacAddress = "0e:2a:11:22:33:44".parse().unwrap();
    for n in 0..2 {
        world.backend(n).advertise(None).await.unwrap();
        let change = LinkChange { mac: Some(copied), ..LinkChange::default() };
        Kernel::of(world.testbed().host(n)).alter("flannel.1", change).await;
    }
    let mut leases = Vec::new();
    let mut networks = Vec::new();
    let backends = [world.backend(0), world.backend(1)];
    for (n, backend) in backends.iter().enumerate() {
        let lease = Lease::new(world.subnet(n), backend.advertise(None).await.unwrap());
        assert_eq!(mac_of(&lease.attrs), copied);
        networks.push(backend.start(&lease).await.unwrap());
        leases.push(lease);
    }
    for _ in 0..2 {
        for n in 0..2 {
            let mut peers = Peers::new(world.config(), leases[n].clone());
            peers.fold(LeaseEvent::reset(leases.clone()));
            networks[n].sync(&peers).await.unwrap();
            leases[n].attrs = backends[n].advertise(Some(&leases[n])).await.unwrap();
        }
    }
    assert_eq!(mac_of(&leases[0].attrs), copied, "the one with the lower subnet keeps it");
    assert_ne!(mac_of(&leases[1].attrs), copied);
    let mut peers = Peers::new(world.config(), leases[0].clone());
    peers.fold(LeaseEvent::reset(leases.clone()));
    assert_eq!(networks[0].sync(&peers).await.unwrap().problems, []);
    assert!(world.reaches(0, 1).await);
    // And after a restart of both programs it stays so.
    for (n, lease) in leases.iter().enumerate() {
        assert_eq!(world.backend(n).advertise(Some(lease)).await.unwrap(), lease.attrs);
    }
}
