//! Our own devices: what they are like, and what they are made of.

use flannel_backend_vxlan::Vxlan;
use flannel_core::{
    Backend, BackendError, Lease, NetworkConfig,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{
    LinkSpec, LinkSpecKind, ensure_link,
    state::{Address, Route, Vxlan as Attributes},
};

use crate::support::{DUAL, IPV4, IPV6, Kernel, finder, mac, mac_of, make, world};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn devices_have_flannels_attributes() {
    let world = world(DUAL).await;
    let host = world.testbed().host(0);
    let default = "/proc/sys/net/ipv6/conf/default/accept_ra";
    host.namespace().run(|| std::fs::write(default, "1")).unwrap().unwrap();
    let nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(host);
    for (name, local, address, mtu) in [
        ("flannel.1", "192.0.2.1", "10.244.1.0/32", 1450),
        ("flannel-v6.1", "2001:db8::1", "fd00:10:244:1::/128", 1430),
    ] {
        let mut expected = Attributes::new(1);
        expected.local = Some(local.parse().unwrap());
        expected.port = Some(8472);
        assert_eq!(kernel.vxlan(name).await, expected, "{name}: not bound to a device");
        let link = kernel.link(name).await;
        assert_eq!((link.mtu, link.up, link.link_local), (mtu, true, false));
        assert_eq!(kernel.shown_addresses(name).await, [address]);
        let setting = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
        let value = host.namespace().run(|| std::fs::read_to_string(setting)).unwrap().unwrap();
        assert_eq!(value.trim(), "0");
    }
    let attrs = &nodes.lease(0).attrs;
    assert_eq!(Some(mac_of(attrs)), kernel.link("flannel.1").await.mac);
    let v6 = kernel.link("flannel-v6.1").await.mac.unwrap();
    let shown = attrs.backend_v6_data.as_ref().unwrap().to_string();
    assert_eq!(shown, format!(r#"{{"VNI":1,"VtepMAC":"{v6}"}}"#));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn options_reach_the_device() {
    let json = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","vni":77,"port":4790,"mtu":1300,"gbp":true,"learning":true}}"#;
    let world = world(json).await;
    let nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let vxlan = kernel.vxlan("flannel.77").await;
    assert_eq!((vxlan.vni, vxlan.port, vxlan.gbp, vxlan.learning), (77, Some(4790), true, true));
    assert_eq!(kernel.link("flannel.77").await.mtu, 1250);
    assert!(world.reaches(0, 1).await);
    assert_eq!(nodes.into_first().1.mtu(), 1250);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn invalid_options_are_refused_before_anything_is_touched() {
    let world = world(IPV4).await;
    let host = world.testbed().host(0);
    let before = world.snapshot(0).await;
    let json = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#;
    let config: NetworkConfig = json.parse().unwrap();
    let error = Vxlan::new(&config, finder(host, &config)).unwrap_err();
    assert!(matches!(error, BackendError::Config { .. }) && !error.is_retryable());
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(reason, "VNI is 16777216, expected a whole number from 0 to 16777215");
    assert_eq!(world.snapshot(0).await, before);
}

/// As flannel makes it: bound to the network card.
fn flannels(parent: u32) -> LinkSpec {
    let mut vxlan = Attributes::new(1);
    vxlan.local = Some("192.0.2.1".parse().unwrap());
    vxlan.parent = Some(parent);
    let mut spec = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(vxlan));
    spec.mac = Some(mac("0e:2a:11:22:33:44"));
    spec.mtu = Some(1450);
    spec
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn flannels_device_is_adopted_as_it_is() {
    let world = world(IPV4).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let eth0 = kernel.link("eth0").await.index;
    let (flannels, _) = ensure_link(&mut kernel.0, &flannels(eth0)).await.unwrap();
    for address in ["10.244.9.0/32", "203.0.113.9/32"] {
        let address = Address::new(flannels.index, address.parse().unwrap());
        kernel.0.apply_one(address.replace()).await.unwrap();
    }
    // What the lease said before may be older.
    let attrs = flannel_core::LeaseAttrs {
        backend_type: "vxlan".into(),
        backend_data: crate::support::data("0e:55:55:55:55:55"),
        ..flannel_core::LeaseAttrs::default()
    };
    let previous = Lease::new(world.subnet(0), attrs);
    let attrs = world.backend(0).advertise(Some(&previous)).await.unwrap();
    assert_eq!(Some(mac_of(&attrs)), flannels.mac);
    let nodes = Nodes::start(&world).await;
    let adopted = kernel.link("flannel.1").await;
    assert_eq!((adopted.index, adopted.mac), (flannels.index, flannels.mac));
    assert_eq!(kernel.vxlan("flannel.1").await.parent, Some(eth0));
    assert_eq!(Some(mac_of(&nodes.lease(0).attrs)), flannels.mac);
    // Of the addresses inside of the network only ours stays; others are none of our business.
    let addresses = kernel.shown_addresses("flannel.1").await;
    assert!(addresses.contains(&"10.244.1.0/32".into()), "{addresses:?}");
    assert!(addresses.contains(&"203.0.113.9/32".into()), "{addresses:?}");
    assert!(!addresses.contains(&"10.244.9.0/32".into()), "{addresses:?}");
    assert!(world.reaches(0, 1).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_bound_device_that_went_with_its_card_is_made_anew_unbound_with_the_same_mac() {
    let world = world(IPV4).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let eth0 = kernel.link("eth0").await.index;
    let (flannels, _) = ensure_link(&mut kernel.0, &flannels(eth0)).await.unwrap();
    let mut nodes = Nodes::start(&world).await;
    host.delete_uplink().await.unwrap();
    assert_eq!(kernel.find("flannel.1").await, None, "it was bound");
    host.create_uplink().await.unwrap();
    assert!(nodes.repair(async || world.reaches(0, 1).await).await);
    assert_eq!(kernel.link("flannel.1").await.mac, flannels.mac);
    assert_eq!(kernel.vxlan("flannel.1").await.parent, None);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_device_on_another_port_stays_unless_a_port_is_asked_for() {
    let there = async |config: &str| {
        let world = world(config).await;
        let mut kernel = Kernel::of(world.testbed().host(0));
        let mut vxlan = Attributes::new(1);
        vxlan.port = Some(4789);
        let mut spec = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(vxlan));
        spec.mac = Some(mac("0e:2a:11:22:33:44"));
        ensure_link(&mut kernel.0, &spec).await.unwrap();
        let _nodes = Nodes::start(&world).await;
        let found = kernel.link("flannel.1").await;
        assert_eq!(found.mac, spec.mac, "peers may know it");
        (kernel.vxlan("flannel.1").await.port, world.reaches(0, 1).await)
    };
    // The other hosts are new, and on the kernel's port.
    assert_eq!(there(IPV4).await, (Some(4789), false));
    let asked = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":8472}}"#;
    assert_eq!(there(asked).await, (Some(8472), true));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_mac_is_the_same_after_a_reboot() {
    let world = world(DUAL).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let first = world.backend(0).advertise(None).await.unwrap();
    let reboot = async |kernel: &mut Kernel| {
        for name in ["flannel.1", "flannel-v6.1"] {
            let index = kernel.link(name).await.index;
            flannel_netlink::delete_link(&mut kernel.0, index).await.unwrap();
        }
    };
    reboot(&mut kernel).await;
    let again = world.backend(0).advertise(None).await.unwrap();
    assert_eq!(again, first, "it depends on the node alone");
    assert_ne!(again, world.backend(1).advertise(None).await.unwrap());
    reboot(&mut kernel).await;
    // What flannel has chosen at random counts as well.
    let mut attrs = first.clone();
    attrs.backend_data = crate::support::data("0e:2a:11:22:33:44");
    let lease = Lease::new(world.subnet(0), attrs.clone());
    assert_eq!(world.backend(0).advertise(Some(&lease)).await.unwrap(), attrs);
    assert_eq!(kernel.link("flannel.1").await.mac, Some(mac("0e:2a:11:22:33:44")));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_mac_follows_the_identity_that_is_given() {
    let world = world(IPV4).await;
    let config = world.config();
    let host = |n| world.testbed().host(n);
    let named = |n, name: &str| {
        let backend = Vxlan::new(&config, finder(host(n), &config)).unwrap();
        backend.with_identity(name.parse().unwrap())
    };
    let one = named(0, "worker-1").advertise(None).await.unwrap();
    let same = named(1, "worker-1").advertise(None).await.unwrap();
    let other = named(2, "worker-2").advertise(None).await.unwrap();
    assert_eq!(mac_of(&one), mac_of(&same));
    assert_ne!(mac_of(&one), mac_of(&other));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_card_too_small_for_ipv6_is_named_with_what_is_needed() {
    let world = world(IPV6).await;
    let host = world.testbed().host(0);
    host.set_mtu(1349).await.unwrap();
    let error = make(host, &world.config()).advertise(None).await.unwrap_err();
    assert!(error.is_retryable());
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(reason, "eth0 has an MTU of 1349 bytes, and IPv6 over vxlan needs 1350");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_device_with_our_vni_is_named_as_what_is_in_the_way() {
    let world = world(IPV4).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let spec = LinkSpec::new("other0", LinkSpecKind::Vxlan(Attributes::new(1)));
    let (other, _) = ensure_link(&mut kernel.0, &spec).await.unwrap();
    let error = make(host, &world.config()).advertise(None).await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert_eq!(
        text,
        "cannot set up device flannel.1: device other0 has VNI 1 and the same port: delete it, or give one of the two another \
         VNI or Port"
    );
    assert!(error.is_retryable(), "somebody may remove it");
    assert_eq!(kernel.link("other0").await, other);
    flannel_netlink::delete_link(&mut kernel.0, other.index).await.unwrap();
    make(host, &world.config()).advertise(None).await.unwrap();
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_default_route_through_our_own_device_does_not_mislead_us() {
    let world = world(IPV4).await;
    let host = world.testbed().host(0);
    let mut kernel = Kernel::of(host);
    let default = || Route::new("0.0.0.0/0".parse().unwrap(), 16);
    let eth0 = kernel.link("eth0").await.index;
    let mut through = default().via_gateway("192.0.2.254".parse().unwrap(), eth0);
    through.metric = 1024;
    kernel.0.apply_one(through.replace()).await.unwrap();
    let config = world.config();
    let options = flannel_backend::UplinkOptions::default();
    let finder = flannel_backend::UplinkFinder::new(host.namespace(), &config, &options).unwrap();
    let uplink = finder.find().await.unwrap();
    let mut watch = finder.watch(&uplink).unwrap();
    let attrs = Vxlan::new(&config, finder.clone()).unwrap().advertise(None).await.unwrap();
    let _nodes = Nodes::start(&world).await;

    // As a DHCP client does that takes flannel.1 for a network card.
    let flannel = kernel.link("flannel.1").await.index;
    kernel.0.apply_one(default().direct(flannel).replace()).await.unwrap();
    let changed = tokio::time::timeout(std::time::Duration::from_millis(300), watch.changed());
    assert!(changed.await.is_err(), "{:?}", watch.current());
    assert_eq!(finder.find().await.unwrap(), uplink);
    let again = Vxlan::new(&config, finder.clone()).unwrap().advertise(None).await.unwrap();
    assert_eq!(again, attrs);
    // Nor while the right one is away.
    kernel.0.apply_one(through.delete()).await.unwrap();
    assert_eq!(finder.find().await.unwrap(), uplink);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_local_address_is_the_cards_and_the_published_one_the_public() {
    let world = world(IPV4).await;
    let host = world.testbed().host(0);
    let options = flannel_backend::UplinkOptions {
        names: vec!["eth0".into()],
        public_ip: Some([203, 0, 113, 9].into()),
        ..flannel_backend::UplinkOptions::default()
    };
    let config = world.config();
    let finder = flannel_backend::UplinkFinder::new(host.namespace(), &config, &options).unwrap();
    let attrs = Vxlan::new(&config, finder).unwrap().advertise(None).await.unwrap();
    assert_eq!(attrs.public_ip, options.public_ip);
    let local = Kernel::of(host).vxlan("flannel.1").await.local;
    assert_eq!(local, Some("192.0.2.1".parse().unwrap()));

    // Of several addresses of the card the one that peers use, as flannel has it.
    host.set_addresses(["192.0.2.1/24", "203.0.113.9/24"].map(|it| it.parse().unwrap()))
        .await
        .unwrap();
    let finder = flannel_backend::UplinkFinder::new(host.namespace(), &config, &options).unwrap();
    let attrs = Vxlan::new(&config, finder).unwrap().advertise(None).await.unwrap();
    assert_eq!(attrs.public_ip, options.public_ip);
    let local = Kernel::of(host).vxlan("flannel.1").await.local;
    assert_eq!(local, Some("203.0.113.9".parse().unwrap()));
}
