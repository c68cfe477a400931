use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use flannel_netlink::{Namespace, state::MacAddress};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::{
    Blocks, Host, Pod, TestbedError,
    kernel::uplink_mac,
    probe::{Reachability, reachability},
    switch::Switch,
    uplink::Uplink,
};

/// A cluster on one machine: a switch, and hosts with an uplink to it.
///
/// All of it is in anonymous namespaces. It vanishes when the value, the [`Host`]s taken from it and the processes
/// started in it are gone, also when this process is killed.
#[derive(Debug)]
pub struct Testbed {
    switch: Arc<Switch>,
    hosts: Vec<Host>,
}

impl Testbed {
    /// A testbed of `hosts` hosts with [`Builder`]'s defaults.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing.
    pub async fn new(hosts: u32) -> Result<Self, TestbedError> {
        Self::builder(hosts).build().await
    }

    /// A testbed of `hosts` hosts, to be described further.
    pub fn builder(hosts: u32) -> Builder {
        Builder {
            hosts,
            underlay: Blocks::from((UNDERLAY_V4, UNDERLAY_V6)),
            mtu: 1500,
            default_route: false,
        }
    }

    /// The hosts, in the order of their addresses.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host number `index`, counted from 0.
    ///
    /// # Panics
    ///
    /// When there are not that many.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// The namespace of the switch, for rules about what passes it: frames from host number `n`, counted from 1, come in on its
    /// bridge port `portN`.
    pub fn switch(&self) -> &Namespace {
        self.switch.namespace()
    }

    /// The pods of all hosts.
    pub fn pods(&self) -> Vec<Pod> {
        self.hosts.iter().flat_map(Host::pods).collect()
    }

    /// Which pod reaches which, as [`reachability`] of all pods.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the answers only.
    pub async fn reachability(&self) -> Reachability {
        reachability(&self.pods()).await
    }

    /// Cuts these hosts off from the others; among themselves they stay connected.
    ///
    /// A second call makes another island. The hosts see nothing but silence: links stay up, no route changes.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a part of them separated; [`heal`](Self::heal) mends it.
    pub async fn separate<'a>(
        &self,
        hosts: impl IntoIterator<Item = &'a Host>,
    ) -> Result<(), TestbedError> {
        let numbers: Vec<_> = hosts.into_iter().map(Host::number).collect();
        self.switch.separate(&numbers).await
    }

    /// Ends all partitions.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a part of the hosts separated; another call mends it.
    pub async fn heal(&self) -> Result<(), TestbedError> {
        self.switch.heal().await
    }
}

/// Describes a [`Testbed`]. Made by [`Testbed::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Builder {
    hosts: u32,
    underlay: Blocks,
    mtu: u32,
    default_route: bool,
}

impl Builder {
    /// What the hosts' own addresses are taken from: host number 1 gets the first address, and so on; the last one is
    /// the gateway's. 192.0.2.0/24 and 2001:db8::/64 unless set, blocks for documentation that no real network uses.
    pub fn underlay(mut self, blocks: impl Into<Blocks>) -> Self {
        self.underlay = blocks.into();
        self
    }

    /// The uplinks' MTU, bytes. 1500 unless set, as on Ethernet.
    pub const fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// Gives every host a default route through the switch, which answers and forwards between the hosts only.
    pub const fn default_route(mut self) -> Self {
        self.default_route = true;
        self
    }

    /// Builds it. Takes some milliseconds per host.
    ///
    /// With more than 30 hosts each has the others as permanent neighbours, because the kernel limits the number of
    /// discovered neighbours (1024 by default) for all namespaces together.
    ///
    /// # Errors
    ///
    /// [`TestbedError::AddressesExhausted`] when the underlay is too small; the other variants when the kernel refuses,
    /// mostly for want of privileges (see [`enter_user_namespace`](crate::enter_user_namespace)).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    pub async fn build(self) -> Result<Testbed, TestbedError> {
        let last = self.underlay.capacity();
        let gateway = self.address(last, "the gateway")?;
        let switch = Arc::new(Switch::create(self.mtu, &gateway).await?);
        let mut uplinks = Vec::new();
        for number in 1..=self.hosts {
            let name = format!("host{number}");
            if number >= last {
                return Err(self.exhausted(&name, number));
            }
            uplinks.push((number, self.address(number, &name)?));
        }
        let mut hosts = Vec::new();
        for (number, addresses) in &uplinks {
            let uplink = Uplink {
                addresses: addresses.clone(),
                gateway: match self.default_route {
                    true => gateway.iter().map(IpNetwork::ip).collect(),
                    false => Vec::new(),
                },
                mtu: self.mtu,
                neighbours: match self.hosts > DISCOVERED_HOSTS {
                    true => neighbours(*number, &uplinks),
                    false => Vec::new(),
                },
            };
            hosts.push(Host::create(*number, &switch, uplink).await?);
        }
        Ok(Testbed { switch, hosts })
    }

    fn address(&self, number: u32, place: &str) -> Result<Vec<IpNetwork>, TestbedError> {
        let addresses = self.underlay.nth(number);
        addresses.ok_or_else(|| self.exhausted(place, number))
    }

    fn exhausted(&self, place: &str, number: u32) -> TestbedError {
        TestbedError::AddressesExhausted { place: place.to_owned(), number, block: self.underlay }
    }
}

/// Everybody else's addresses.
fn neighbours(number: u32, uplinks: &[(u32, Vec<IpNetwork>)]) -> Vec<(IpAddr, MacAddress)> {
    let others = uplinks.iter().filter(|(other, _)| *other != number);
    others
        .flat_map(|(other, addresses)| addresses.iter().map(|it| (it.ip(), uplink_mac(*other))))
        .collect()
}

/// 30 hosts that all talk to each other discover 870 neighbours, and pods need some too.
const DISCOVERED_HOSTS: u32 = 30;
/// TEST-NET-1 of RFC 5737.
const UNDERLAY_V4: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(192, 0, 2, 0), 24) {
    Some(block) => block,
    None => panic!("24 is a prefix length"),
};
/// RFC 3849.
const UNDERLAY_V6: Ipv6Network =
    match Ipv6Network::new_checked(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 64) {
        Some(block) => block,
        None => panic!("64 is a prefix length"),
    };
