//! Two namespaces joined by a veth pair, with a node of this backend in each.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
};

use flannel_backend::{UplinkFinder, UplinkOptions};
use flannel_core::{
    Backend, Family, Lease, LeaseEvent, Network, NetworkConfig, Peers, error_chain,
};
use flannel_netlink::{
    Connection, LinkChange, LinkSpec, LinkSpecKind, Namespace, alter_link, ensure_link,
    link_by_name,
    state::{Address, Object},
};
use ipnetwork::IpNetwork;
use tokio::time::{Duration, sleep};

use super::{Masquerade, SelfTestError};
use crate::Udp;

/// Two nodes that reach each other.
pub(super) struct Pair {
    config: NetworkConfig,
    sides: [Side; 2],
}

/// A node in a namespace of its own.
pub(super) struct Side {
    number: u8,
    pub(super) namespace: Namespace,
    node: Option<Node>,
}

struct Node {
    backend: Arc<Udp>,
    network: Box<dyn Network>,
    lease: Lease,
}

impl Pair {
    /// Makes the namespaces.
    pub(super) fn create(families: &[Family]) -> Result<Self, SelfTestError> {
        let side = |number| {
            let namespace =
                Namespace::create().map_err(|error| SelfTestError::not_tried(&error))?;
            Ok(Side { number, namespace, node: None })
        };
        let config = config(families);
        let config = config.parse().map_err(|error| SelfTestError::not_tried(&error))?;
        Ok(Self { config, sides: [side(1)?, side(2)?] })
    }

    /// Joins them, and starts the nodes.
    pub(super) async fn connect(&mut self) -> Result<(), SelfTestError> {
        let made = self.join().await;
        made.map_err(|error| SelfTestError::not_tried(&*error))?;
        let started = self.start().await;
        // The programs could be loaded before, so this is the kernel's.
        started.map_err(|error| SelfTestError::Load { reason: error_chain(&*error) })
    }

    async fn join(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let other = self.sides[1].namespace.clone();
        for side in &self.sides {
            let mut connection = Connection::open(&side.namespace)?;
            side.namespace.run(|| write_settings(&self.config))??;
            if side.number == 1 {
                let (peer, peer_namespace) = (UPLINK.to_owned(), Some(other.clone()));
                let kind = LinkSpecKind::Veth { peer, peer_namespace };
                ensure_link(&mut connection, &LinkSpec::new(UPLINK, kind)).await?;
            }
            let link = link_by_name(&mut connection, UPLINK).await?.ok_or("no veth device")?;
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            alter_link(&mut connection, LOOPBACK, &up).await?;
            alter_link(&mut connection, link.index, &up).await?;
            for family in self.families() {
                let is_first = side.number == 1;
                let outside = is_first.then(|| (LOOPBACK, IpNetwork::from(outside(family))));
                for (link, address) in
                    [(link.index, side.uplink(family))].into_iter().chain(outside)
                {
                    let mut address = Address::new(link, address);
                    address.no_duplicate_detection = true;
                    connection.apply_one(Object::from(address).replace()).await?;
                }
            }
        }
        for side in &self.sides {
            let mut connection = Connection::open(&side.namespace)?;
            // The kernel starts a link in its own time. The first packet would be lost, and sent again after a second.
            while !link_by_name(&mut connection, UPLINK).await?.is_some_and(|link| link.running) {
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        for side in &mut self.sides {
            let options = UplinkOptions { names: vec![UPLINK.into()], ..UplinkOptions::default() };
            let finder = UplinkFinder::new(&side.namespace, &self.config, &options)?;
            let backend = Arc::new(Udp::new(&self.config, finder)?.without_self_test());
            let attrs = backend.advertise(None).await?;
            let lease = Lease::new(side.subnet(&self.config).parse()?, attrs);
            let network = backend.start(&lease).await?;
            side.node = Some(Node { backend, network, lease });
        }
        let leases: Vec<_> =
            self.sides.iter().filter_map(|side| Some(side.node.as_ref()?.lease.clone())).collect();
        for node in self.sides.iter_mut().filter_map(|side| side.node.as_mut()) {
            let mut peers = Peers::new(self.config.clone(), node.lease.clone());
            peers.fold(LeaseEvent::reset(leases.clone()));
            let report = node.network.sync(&peers).await?;
            if let Some(fault) = report.faults.first() {
                return Err(fault.to_string().into());
            }
        }
        Ok(())
    }

    fn families(&self) -> impl Iterator<Item = Family> {
        let ipv4 = self.config.ipv4().map(|_| Family::Ipv4);
        ipv4.into_iter().chain(self.config.ipv6().map(|_| Family::Ipv6))
    }

    pub(super) fn namespaces(&self) -> (&Namespace, &Namespace) {
        (&self.sides[0].namespace, &self.sides[1].namespace)
    }

    /// The address of the first or the second tunnel device.
    pub(super) fn tunnel(&self, side: usize, family: Family) -> IpAddr {
        let number = self.sides[side].number;
        match family {
            Family::Ipv4 => Ipv4Addr::new(10, 244, number, 0).into(),
            Family::Ipv6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0).into(),
        }
    }

    /// How many packets the programs of the first node have carried.
    pub(super) fn carried(&self) -> u64 {
        self.sides[0].node.as_ref().map_or(0, |node| node.backend.stats().by_ebpf)
    }

    /// Has the first namespace translate what [`outside`] sends. Says why if it cannot.
    pub(super) async fn masquerade(
        &self,
        masquerade: &dyn Masquerade,
        family: Family,
    ) -> Result<(), String> {
        let asked = masquerade.masquerade(&self.sides[0].namespace, outside(family));
        asked.await.map_err(|error| error_chain(&*error))
    }

    /// Stops the nodes. The namespaces go with the last of what holds them.
    pub(super) async fn teardown(self) {
        for node in self.sides.into_iter().filter_map(|side| side.node) {
            // What is left goes with the namespace.
            let _ = node.network.teardown().await;
        }
    }
}

impl Side {
    fn uplink(&self, family: Family) -> IpNetwork {
        match family {
            Family::Ipv4 => network(Ipv4Addr::new(192, 0, 2, self.number).into(), 24),
            Family::Ipv6 => {
                network(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self.number.into()).into(), 64)
            }
        }
    }

    /// As a key of a lease.
    fn subnet(&self, config: &NetworkConfig) -> String {
        let ipv4 = config.ipv4().map(|_| format!("10.244.{}.0-24", self.number));
        let ipv6 = config.ipv6().map(|_| format!("fd00:10:244:{}::-64", self.number));
        [ipv4, ipv6].into_iter().flatten().collect::<Vec<_>>().join("&")
    }
}

/// An address of the first namespace that the second has no route to.
pub(super) const fn outside(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1)),
    }
}

fn network(ip: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(ip, prefix).expect("a prefix that fits the family")
}

/// The network of the two nodes. Nobody else is in their namespaces, so any would do.
fn config(families: &[Family]) -> String {
    let has = |family| families.contains(&family);
    format!(
        r#"{{"EnableIPv4":{},"Network":"10.244.0.0/16","EnableIPv6":{},"IPv6Network":"fd00:10:244::/48","Backend":{{"Type":"udp","Engine":"ebpf"}}}}"#,
        has(Family::Ipv4),
        has(Family::Ipv6)
    )
}

/// The programs ask for the next hop as a router does, so both have to be routers.
fn write_settings(config: &NetworkConfig) -> std::io::Result<()> {
    let ipv4 = config.ipv4().map(|_| "/proc/sys/net/ipv4/ip_forward");
    let ipv6 = config.ipv6().map(|_| "/proc/sys/net/ipv6/conf/all/forwarding");
    for path in [ipv4, ipv6].into_iter().flatten().map(Path::new) {
        // Read first: /proc/sys may be read-only and right.
        if fs::read_to_string(path)?.trim() != "1" {
            fs::write(path, "1").map_err(|error| {
                std::io::Error::new(
                    error.kind(),
                    format!("cannot write {}: {error}", path.display()),
                )
            })?;
        }
    }
    Ok(())
}

const UPLINK: &str = "eth0";
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// In every namespace.
const LOOPBACK: u32 = 1;
