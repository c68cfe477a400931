use std::sync::Arc;

use async_trait::async_trait;
use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_udp::Udp;
use flannel_core::{Backend, Lease, NetworkConfig, Subnet, testing::network::NetworkWorld};
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

pub(crate) type Make = fn(&Host, &NetworkConfig) -> Arc<dyn Backend>;

/// Hosts whose way to all peers is one route.
pub(crate) struct World(pub(crate) KernelWorld<Make>);

pub(crate) async fn world(config: &str) -> World {
    World(KernelWorld::new(&config.replace("userspace", crate::ENGINE), make as Make).await)
}

#[async_trait]
impl NetworkWorld for World {
    fn config(&self) -> NetworkConfig {
        self.0.config()
    }

    fn subnet(&self, host: usize) -> Subnet {
        self.0.subnet(host)
    }

    fn backend(&self, host: usize) -> Arc<dyn Backend> {
        self.0.backend(host)
    }

    fn bad(&self, good: &Lease) -> Vec<Lease> {
        self.0.bad(good)
    }

    async fn reaches(&self, from: usize, to: usize) -> bool {
        self.0.reaches(from, to).await
    }

    async fn damage(&self, host: usize, _: usize) {
        let mut kernel = Kernel::of(self.0.testbed().host(host));
        let routes = kernel.routes().await;
        assert!(!routes.is_empty(), "there was nothing to damage");
        for route in routes {
            kernel.0.apply_one(route.delete()).await.unwrap();
        }
    }

    async fn plant_foreign(&self, host: usize) {
        self.0.plant_foreign(host).await;
    }

    async fn snapshot(&self, host: usize) -> String {
        self.0.snapshot(host).await
    }

    async fn writes(&self, host: usize) -> u64 {
        self.0.writes(host).await
    }
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
