use std::{net::IpAddr, sync::Arc, time::Duration};

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_vxlan::Vxlan;
use flannel_core::{Backend, Lease, LeaseAttrs, NetworkConfig, RawJson};
use flannel_netlink::{
    Connection, LinkChange, alter_link, link_by_name, list_addresses, list_forwarding,
    list_neighbours, list_nexthops, list_routes,
    state::{
        Address, AddressFilter, ForwardingEntry, IpFamily, Link, LinkKind, MacAddress, Neighbour,
        Nexthop, Route, Vxlan as Attributes,
    },
};
use flannel_testbed::Host;

pub(crate) const IPV4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;

/// What a repair may take, from the contract.
pub(crate) const REPAIR: Duration = Duration::from_secs(1);

pub(crate) fn finder(host: &Host, config: &NetworkConfig) -> UplinkFinder {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    UplinkFinder::new(host.namespace(), config, &options).unwrap()
}

pub(crate) fn make(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    Arc::new(Vxlan::new(config, finder(host, config)).unwrap())
}

pub(crate) type Make = fn(&Host, &NetworkConfig) -> Arc<dyn Backend>;

pub(crate) async fn world(config: &str) -> KernelWorld<Make> {
    KernelWorld::new(config, make as Make).await
}

/// A look at, and a hand on, the kernel of a host.
pub(crate) struct Kernel(pub(crate) Connection);

impl Kernel {
    pub(crate) fn of(host: &Host) -> Self {
        Self(host.connect().unwrap())
    }

    pub(crate) async fn find(&mut self, name: &str) -> Option<Link> {
        link_by_name(&mut self.0, name).await.unwrap()
    }

    pub(crate) async fn link(&mut self, name: &str) -> Link {
        self.find(name).await.unwrap_or_else(|| panic!("no device {name}"))
    }

    pub(crate) async fn vxlan(&mut self, name: &str) -> Attributes {
        let LinkKind::Vxlan(vxlan) = self.link(name).await.kind else { panic!("{name}") };
        vxlan
    }

    pub(crate) async fn alter(&mut self, name: &str, change: LinkChange) {
        let index = self.link(name).await.index;
        alter_link(&mut self.0, index, &change).await.unwrap();
    }

    pub(crate) async fn addresses(&mut self, name: &str) -> Vec<Address> {
        let filter = AddressFilter { link: Some(self.link(name).await.index) };
        list_addresses(&mut self.0, filter).await.unwrap()
    }

    pub(crate) async fn shown_addresses(&mut self, name: &str) -> Vec<String> {
        let mut shown: Vec<_> =
            self.addresses(name).await.iter().map(|it| it.address.to_string()).collect();
        shown.sort();
        shown
    }

    /// The entries that lead to a remote.
    pub(crate) async fn forwarding(&mut self, name: &str) -> Vec<ForwardingEntry> {
        let index = self.link(name).await.index;
        let mut entries = list_forwarding(&mut self.0, index).await.unwrap();
        entries.retain(|entry| entry.remote.is_some());
        entries
    }

    pub(crate) async fn neighbours(&mut self, name: &str) -> Vec<Neighbour> {
        let index = self.link(name).await.index;
        let mut neighbours = list_neighbours(&mut self.0, index).await.unwrap();
        neighbours.retain(|neighbour| neighbour.permanent);
        neighbours
    }

    pub(crate) async fn nexthops(&mut self) -> Vec<Nexthop> {
        list_nexthops(&mut self.0).await.unwrap()
    }

    pub(crate) async fn route(&mut self, destination: &str) -> Option<Route> {
        let destination: ipnetwork::IpNetwork = destination.parse().unwrap();
        let family = IpFamily::of(&destination.ip());
        let routes = list_routes(&mut self.0, Route::MAIN, family).await.unwrap();
        routes.into_iter().find(|route| route.destination == destination)
    }

    /// The gateway and the device of the nexthop object that a route leads through.
    pub(crate) async fn way(&mut self, destination: &str) -> (IpAddr, u32) {
        let route = self.route(destination).await.expect("a route");
        let flannel_netlink::state::Via::Nexthop(id) = route.via else { panic!("{route:?}") };
        let nexthop = self.nexthops().await.into_iter().find(|nexthop| nexthop.id == id).unwrap();
        (nexthop.gateway, nexthop.link)
    }
}

pub(crate) fn mac(text: &str) -> MacAddress {
    text.parse().unwrap()
}

pub(crate) fn data(mac: &str) -> Option<RawJson> {
    Some(RawJson::new(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).unwrap())
}

/// The Ethernet address in the IPv4 data of a lease.
pub(crate) fn mac_of(attrs: &LeaseAttrs) -> MacAddress {
    let data = attrs.backend_data.as_ref().expect("data").as_str();
    let (_, mac) = data.trim_end_matches("\"}").split_once("\"VtepMAC\":\"").expect("an address");
    mac.parse().unwrap()
}

/// The lease with `change` made to what it says.
pub(crate) fn changed(lease: &Lease, change: impl FnOnce(&mut LeaseAttrs)) -> Lease {
    let mut lease = lease.clone();
    change(&mut lease.attrs);
    lease
}
