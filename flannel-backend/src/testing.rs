//! Real hosts in namespaces for the contract of networks: what every kernel backend's tests share.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use flannel_core::{
    Backend, Lease, LeaseAttrs, NetworkConfig, Subnet,
    testing::network::{HOSTS, NetworkWorld},
};
use flannel_netlink::{
    Monitor, Notice, Subject, list_links,
    state::{Address, Link, Object, Route},
};
use flannel_testbed::{Blocks, Host, Pod, Testbed};
use tokio::{sync::Mutex, time::timeout};

use crate::PROTOCOL;

/// Hosts on one switch with a pod behind each, for [`network_conformance!`](flannel_core::network_conformance).
#[derive(Debug)]
pub struct KernelWorld<B> {
    testbed: Testbed,
    pods: Vec<Pod>,
    config: NetworkConfig,
    make: B,
    monitors: Vec<Mutex<Counter>>,
    repair_time: Duration,
}

#[derive(Debug)]
struct Counter {
    monitor: Monitor,
    count: u64,
    /// The addresses that were announced.
    addresses: HashSet<Address>,
    /// The devices as they were announced, by their indexes, whether they have a carrier or not.
    links: HashMap<u32, Link>,
}

impl Counter {
    /// Takes in a notification, and counts it unless the kernel tells something that nobody has just written.
    fn take_in(&mut self, notice: &Notice) {
        let (Notice::Added { subject, .. } | Notice::Removed { subject, .. }) = notice else {
            self.count += 1;
            return;
        };
        let is_news = match subject {
            Subject::Object(Object::Address(address)) => {
                // It is announced again when the kernel has looked for duplicates, if it does.
                let address = Address { tentative: false, ..*address };
                match notice {
                    Notice::Added { .. } => self.addresses.insert(address),
                    _ => {
                        self.addresses.remove(&address);
                        true
                    }
                }
            }
            // A queue that is attached to a TUN device has the device announced as it was, and so has a carrier that comes.
            Subject::Link(link) if matches!(notice, Notice::Added { .. }) => {
                let link = Link { running: false, ..link.clone() };
                self.links.insert(link.index, link.clone()) != Some(link)
            }
            // It comes with an address, sooner or later.
            Subject::Object(Object::Route(route)) => route.table != LOCAL_TABLE,
            subject => !is_learned(subject),
        };
        self.count += u64::from(is_news);
    }
}

impl<B> KernelWorld<B>
where
    B: Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + Send + Sync,
{
    /// Hosts for the network of `config`, which cuts `10.244.0.0/16` into /24 and `fd00:10:244::/48` into /64. `make` is the
    /// backend of a host.
    pub async fn new(config: &str, make: B) -> Self {
        let config: NetworkConfig = config.parse().expect("a valid network config");
        let testbed = Testbed::new(HOSTS as u32).await.expect("a testbed");
        let (pods, monitors, repair_time) = (Vec::new(), Vec::new(), Duration::from_secs(1));
        let mut world = Self { testbed, pods, config, make, monitors, repair_time };
        for n in 0..HOSTS {
            let host = world.testbed.host(n);
            let pod = host.add_pod(world.blocks(n)).await.expect("a pod");
            let monitor = Monitor::open(host.namespace()).expect("a monitor");
            let links = list_links(&mut host.connect().expect("a connection")).await;
            let links = links.expect("devices").into_iter();
            let links = links.map(|link| (link.index, Link { running: false, ..link })).collect();
            world.pods.push(pod);
            let addresses = HashSet::new();
            world.monitors.push(Mutex::new(Counter { monitor, count: 0, addresses, links }));
        }
        world
    }

    /// The same for a backend whose repairs may take longer than the contract's second.
    #[must_use]
    pub fn with_repair_time(mut self, repair_time: Duration) -> Self {
        self.repair_time = repair_time;
        self
    }

    /// The hosts and their switch.
    pub fn testbed(&self) -> &Testbed {
        &self.testbed
    }

    /// The pod behind a host.
    pub fn pod(&self, host: usize) -> &Pod {
        &self.pods[host]
    }

    /// Waits until the kernel of a host has nothing more to tell, and returns how many changes it has told so far.
    ///
    /// Some of what a write causes comes later: an IPv6 address is announced again when the kernel has looked for duplicates.
    pub async fn settle(&self, host: usize) -> u64 {
        let mut counter = self.monitors[host].lock().await;
        while let Ok(notice) = timeout(QUIET, counter.monitor.next()).await {
            counter.take_in(&notice.expect("notifications"));
        }
        counter.count
    }

    /// The blocks of a host's subnet.
    pub fn blocks(&self, host: usize) -> Blocks {
        let subnet = self.subnet(host);
        Blocks::new(subnet.ipv4(), subnet.ipv6()).expect("a subnet is not empty")
    }
}

#[async_trait]
impl<B> NetworkWorld for KernelWorld<B>
where
    B: Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + Send + Sync,
{
    fn config(&self) -> NetworkConfig {
        self.config.clone()
    }

    fn subnet(&self, host: usize) -> Subnet {
        let n = host + 1;
        let ipv4 = self.config.ipv4().map(|_| format!("10.244.{n}.0/24").parse().unwrap());
        let ipv6 = self.config.ipv6().map(|_| format!("fd00:10:244:{n}::/64").parse().unwrap());
        Subnet::new(ipv4, ipv6).expect("a config has a family")
    }

    fn backend(&self, host: usize) -> Arc<dyn Backend> {
        (self.make)(self.testbed.host(host), &self.config)
    }

    fn bad(&self, good: &Lease) -> Vec<Lease> {
        let ipv4 = self.config.ipv4().map(|_| "10.244.77.0/24".parse().unwrap());
        let ipv6 = self.config.ipv6().map(|_| "fd00:10:244:77::/64".parse().unwrap());
        let nowhere = LeaseAttrs { public_ip: None, public_ipv6: None, ..good.attrs.clone() };
        vec![Lease::new(Subnet::new(ipv4, ipv6).expect("as above"), nowhere)]
    }

    async fn reaches(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.pods[from], &self.pods[to]);
        for (from, to) in [(from, to), (to, from)] {
            for ip in to.endpoint().ips() {
                if from.ping(ip).await.is_err() {
                    return false;
                }
            }
        }
        true
    }

    /// Deletes the routes to the peer or, where it has none of its own, to the whole network.
    async fn damage(&self, host: usize, peer: usize) {
        let ipv4 = self.config.ipv4().map(|range| range.network());
        let ipv6 = self.config.ipv6().map(|range| range.network());
        let network = Blocks::new(ipv4, ipv6).expect("a config has a family");
        let host = self.testbed.host(host);
        let mut deleted = host.delete_route(self.blocks(peer)).await.expect("delete routes");
        if deleted == 0 {
            deleted = host.delete_route(network).await.expect("delete routes");
        }
        assert!(deleted > 0, "there was nothing to damage");
    }

    async fn plant_foreign(&self, host: usize) {
        let (host, other) = (self.testbed.host(host), self.testbed.host(HOSTS - 1));
        // Inside the network, but of another protocol and nobody's subnet.
        let inside: Blocks = "10.244.99.0/24,fd00:10:244:99::/64".parse().unwrap();
        host.add_route(inside, other).await.expect("a foreign route");
        // Of our protocol, but outside of the network; and inside of it, but in another table.
        let mut connection = host.connect().expect("a connection");
        let IpAddr::V4(gateway) = other.ip() else { panic!("hosts have IPv4 addresses") };
        for (block, table) in [("203.0.113.0/24", Route::MAIN), ("10.244.98.0/24", 100)] {
            let mut route = Route::new(block.parse().unwrap(), PROTOCOL);
            route = route.via_gateway(gateway.into(), uplink(host).await);
            route.table = table;
            connection.apply_one(route.replace()).await.expect("a foreign route");
        }
    }

    async fn snapshot(&self, host: usize) -> String {
        self.settle(host).await;
        self.testbed.host(host).snapshot().await.expect("a snapshot").to_string()
    }

    async fn writes(&self, host: usize) -> u64 {
        self.settle(host).await
    }

    fn repair_time(&self) -> Duration {
        self.repair_time
    }
}

/// After so long without a notification a host has settled.
const QUIET: Duration = Duration::from_millis(100);

async fn uplink(host: &Host) -> u32 {
    let mut connection = host.connect().expect("a connection");
    let link = flannel_netlink::link_by_name(&mut connection, "eth0").await;
    link.expect("links").expect("an uplink").index
}

/// Whether the kernel learned of a neighbour by itself: nobody has written that.
fn is_learned(subject: &Subject) -> bool {
    match subject {
        Subject::Object(Object::Neighbour(neighbour)) => !neighbour.permanent,
        Subject::Object(Object::ForwardingEntry(entry)) => !entry.permanent,
        Subject::Other(_) => true,
        _ => false,
    }
}

/// The table of the kernel's own routes to addresses of this machine, linux/rtnetlink.h.
const LOCAL_TABLE: u32 = 255;
