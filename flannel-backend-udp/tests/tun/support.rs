use std::sync::Arc;

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_udp::Udp;
use flannel_core::{Backend, NetworkConfig};
use flannel_netlink::{
    Connection, LinkChange, alter_link, delete_link, link_by_name, list_routes,
    state::{IpFamily, Link, Route},
};
use flannel_testbed::Host;

pub(crate) const IPV4: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Engine":"userspace"}}"#;
pub(crate) const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"userspace"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"userspace"}}"#;

pub(crate) fn udp(host: &Host, config: &NetworkConfig) -> Udp {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    let finder = UplinkFinder::new(host.namespace(), config, &options).unwrap();
    Udp::new(config, finder).unwrap()
}

fn make(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    Arc::new(udp(host, config))
}

type Make = fn(&Host, &NetworkConfig) -> Arc<dyn Backend>;

/// Hosts whose way to all peers is one route.
pub(crate) async fn world(config: &str) -> KernelWorld<Make> {
    KernelWorld::new(&config.replace("userspace", crate::ENGINE), make as Make).await
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

    pub(crate) async fn alter(&mut self, name: &str, change: LinkChange) {
        let index = self.link(name).await.index;
        alter_link(&mut self.0, index, &change).await.unwrap();
    }

    pub(crate) async fn delete(&mut self, name: &str) {
        let index = self.link(name).await.index;
        delete_link(&mut self.0, index).await.unwrap();
    }

    /// The routes of whole networks.
    pub(crate) async fn routes(&mut self) -> Vec<Route> {
        let networks = ["10.244.0.0/16", "fd00:10:244::/48"].map(|text| text.parse().unwrap());
        let mut routes = Vec::new();
        for family in IpFamily::ALL {
            routes.extend(list_routes(&mut self.0, Route::MAIN, family).await.unwrap());
        }
        routes.retain(|route| networks.contains(&route.destination));
        routes
    }
}
