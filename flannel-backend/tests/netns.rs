//! The uplink of real hosts.

use std::time::Duration;

use flannel_backend::{UplinkFinder, UplinkOptions, UplinkWatch};
use flannel_core::{Lease, LeaseAttrs, NetworkConfig};
use flannel_netlink::{
    Connection, LinkChange, LinkSpec, LinkSpecKind, alter_link, delete_link, ensure_link,
    iface::{Interface, InterfaceFault},
    link_by_name,
    state::{Address, IpFamily},
};
use flannel_testbed::{Host, Testbed, soon};
use tokio::time::timeout;

#[path = "netns/alloc_backend.rs"]
mod alloc_backend;
#[path = "netns/guards.rs"]
mod guards;

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#;

fn finder(host: &Host) -> UplinkFinder {
    let config: NetworkConfig = DUAL.parse().unwrap();
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    UplinkFinder::new(host.namespace(), &config, &options).unwrap()
}

/// A hand on the uplink of a host.
struct Uplink {
    connection: Connection,
    index: u32,
}

impl Uplink {
    async fn of(host: &Host) -> Self {
        let mut connection = host.connect().unwrap();
        let index = link_by_name(&mut connection, "eth0").await.unwrap().unwrap().index;
        Self { connection, index }
    }

    fn address(&self, text: &str) -> Address {
        let mut address = Address::new(self.index, text.parse().unwrap());
        address.no_duplicate_detection = true;
        address
    }

    async fn add(&mut self, text: &str) {
        self.connection.apply_one(self.address(text).replace()).await.unwrap();
    }

    async fn remove(&mut self, text: &str) {
        self.connection.apply_one(self.address(text).delete()).await.unwrap();
    }
}

async fn next(watch: &mut UplinkWatch) -> Interface {
    soon(watch.changed()).await.unwrap()
}

async fn is_quiet(watch: &mut UplinkWatch) -> bool {
    timeout(Duration::from_millis(900), watch.changed()).await.is_err()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn addresses_that_come_and_go_beside_the_published_ones_are_not_told() {
    let testbed = Testbed::new(1).await.unwrap();
    let mut eth0 = Uplink::of(testbed.host(0)).await;
    let finder = finder(testbed.host(0));
    let mut watch = finder.watch(&finder.find().await.unwrap()).unwrap();
    assert!(is_quiet(&mut watch).await);
    let beside = [
        "2001:db8:9::9/64",
        "fd00:9::9/64",
        "2001:db8:9::100/128",
        "192.0.2.100/32",
        "169.254.9.9/16",
    ];
    for _ in 0..30 {
        for address in beside {
            eth0.add(address).await;
        }
        // A look in the middle of it.
        assert_eq!(finder.find().await.unwrap().interface, *watch.current());
        for address in beside {
            eth0.remove(address).await;
        }
    }
    assert!(is_quiet(&mut watch).await, "{:?}", watch.current());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn each_new_answer_is_told_and_the_last_one_stays_while_there_is_none() {
    let testbed = Testbed::new(1).await.unwrap();
    let host = testbed.host(0);
    let mut eth0 = Uplink::of(host).await;
    let finder = finder(host);
    let first = finder.find().await.unwrap();
    let mut watch = finder.watch(&first).unwrap();
    let (v4, v6) = (first.interface.v4.unwrap(), first.interface.v6);
    let held = format!("{v4}/24");
    host.set_mtu(1400).await.unwrap();
    assert_eq!(next(&mut watch).await.mtu, 1400);

    // Renumbered, as DHCP does it.
    eth0.remove(&held).await;
    eth0.add("192.0.2.77/24").await;
    let renumbered = next(&mut watch).await;
    assert_eq!((renumbered.v4, renumbered.v6), (Some([192, 0, 2, 77].into()), v6));
    // The old one is of no use any more, even if it comes back.
    eth0.add(&held).await;
    assert!(is_quiet(&mut watch).await, "{:?}", watch.current());
    eth0.remove(&held).await;

    // Left without one.
    eth0.remove("192.0.2.77/24").await;
    let without = next(&mut watch).await;
    assert_eq!(without.faults, [InterfaceFault::NoAddress(IpFamily::V4)]);
    assert_eq!((without.v4, without.v6), (renumbered.v4, v6));
    eth0.add("192.0.2.77/24").await;
    assert_eq!(next(&mut watch).await, renumbered);

    let change = LinkChange { up: Some(false), ..LinkChange::default() };
    alter_link(&mut eth0.connection, eth0.index, &change).await.unwrap();
    let down = next(&mut watch).await;
    assert!(down.faults.contains(&InterfaceFault::Down), "{down:?}");
    delete_link(&mut eth0.connection, eth0.index).await.unwrap();
    let missing = next(&mut watch).await;
    assert_eq!((missing.v4, &*missing.faults), (renumbered.v4, &[InterfaceFault::Missing][..]));

    let pair = LinkSpecKind::Veth { peer: "far0".to_owned(), peer_namespace: None };
    let anew = ensure_link(&mut eth0.connection, &LinkSpec::new("eth0", pair)).await.unwrap().0;
    eth0.index = anew.index;
    eth0.add("192.0.2.2/24").await;
    let found = loop {
        let found = next(&mut watch).await;
        if found.v4 == Some([192, 0, 2, 2].into()) {
            break found;
        }
    };
    assert_eq!((found.index, found.v6), (anew.index, v6), "{found:?}");
    assert!(found.faults.contains(&InterfaceFault::NoAddress(IpFamily::V6)));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_restarted_node_takes_the_address_of_its_lease() {
    let testbed = Testbed::new(1).await.unwrap();
    let mut eth0 = Uplink::of(testbed.host(0)).await;
    for address in ["192.0.2.77/24", "192.0.2.100/32", "2001:db8:9::9/64"] {
        eth0.add(address).await;
    }
    for published in ["192.0.2.77", "192.0.2.100", "192.0.2.1"] {
        let finder = finder(testbed.host(0));
        // Found before the lease was known, as a node does that goes by its address.
        finder.find().await.unwrap();
        let mut attrs = LeaseAttrs::default();
        (attrs.public_ip, attrs.public_ipv6) =
            (published.parse().ok(), "2001:db8:9::9".parse().ok());
        let lease = Lease::new("10.244.7.0-24".parse().unwrap(), attrs.clone());
        let uplink = finder.find_for(Some(&lease)).await.unwrap();
        assert_eq!((uplink.public_ip, uplink.public_ipv6), (attrs.public_ip, attrs.public_ipv6));
        assert_eq!(finder.find().await.unwrap(), uplink);
    }
}
