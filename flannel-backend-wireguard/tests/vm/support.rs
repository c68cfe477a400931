use std::sync::Arc;

use async_trait::async_trait;
use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_wireguard::Wireguard;
use flannel_core::{Backend, Lease, NetworkConfig, Subnet, testing::network::NetworkWorld};
use flannel_netlink::{
    link_by_name, list_routes,
    state::{IpFamily, Route},
    wireguard::{Device, PeerChange, PeerConfig, Wireguard as Kernel},
};
use flannel_testbed::Host;
use tempfile::TempDir;

pub(crate) const IPV4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#;
pub(crate) const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"wireguard"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"wireguard"}}"#;
pub(crate) const ONE: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48",
    "Backend":{"Type":"wireguard","Mode":"ipv6","PSK":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}}"#;

type Make = Box<dyn Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + Send + Sync>;

/// Hosts with a key each, where one route leads to all peers.
pub(crate) struct World(pub(crate) KernelWorld<Make>);

pub(crate) fn backend(host: &Host, config: &NetworkConfig, keys: &TempDir) -> Wireguard {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    let finder = UplinkFinder::new(host.namespace(), config, &options).unwrap();
    Wireguard::new(config, finder, keys.path().join(host.ip().to_string())).unwrap()
}

pub(crate) async fn world(config: &str) -> World {
    world_where(config, |_, config| config.clone()).await
}

/// The same with a configuration for each host.
pub(crate) async fn world_where(
    config: &str,
    of: impl Fn(&Host, &NetworkConfig) -> NetworkConfig + Send + Sync + 'static,
) -> World {
    let keys = tempfile::tempdir().unwrap();
    let make = move |host: &Host, config: &NetworkConfig| -> Arc<dyn Backend> {
        Arc::new(backend(host, &of(host, config), &keys))
    };
    World(KernelWorld::new(config, Box::new(make) as Make).await)
}

impl World {
    pub(crate) fn host(&self, n: usize) -> &Host {
        self.0.testbed().host(n)
    }

    pub(crate) async fn find(&self, host: usize, name: &str) -> Option<u32> {
        let mut connection = self.host(host).connect().unwrap();
        link_by_name(&mut connection, name).await.unwrap().map(|link| link.index)
    }

    pub(crate) async fn link(&self, host: usize, name: &str) -> u32 {
        self.find(host, name).await.expect("a device")
    }

    pub(crate) async fn device(&self, host: usize, name: &str) -> Device {
        let link = self.link(host, name).await;
        self.kernel(host).get(link).await.unwrap()
    }

    /// The peers of a device, in the order of their keys.
    pub(crate) async fn peers(&self, host: usize, name: &str) -> Vec<PeerConfig> {
        let peers = self.device(host, name).await.peers;
        let mut configs: Vec<_> = peers.into_iter().map(|peer| peer.config).collect();
        configs.sort_by_key(|config| config.key);
        configs
    }

    /// Does what an administrator does with `wg set`.
    pub(crate) async fn meddle(&self, host: usize, name: &str, change: PeerChange) {
        let link = self.link(host, name).await;
        let done = self.kernel(host).set_peers(link, &[change]).await;
        assert_eq!(done, [Ok(())]);
    }

    pub(crate) fn kernel(&self, host: usize) -> Kernel {
        Kernel::open(self.host(host).namespace()).unwrap()
    }
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
        let networks = ["10.244.0.0/16", "fd00:10:244::/48"].map(|text| text.parse().unwrap());
        let mut connection = self.host(host).connect().unwrap();
        let mut deleted = 0;
        for family in IpFamily::ALL {
            let routes = list_routes(&mut connection, Route::MAIN, family).await.unwrap();
            for route in routes.iter().filter(|route| networks.contains(&route.destination)) {
                connection.apply_one(route.delete()).await.unwrap();
                deleted += 1;
            }
        }
        assert!(deleted > 0, "there was nothing to damage");
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
