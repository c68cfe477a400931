use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use flannel_netlink::{LinkChange, LinkSpec, LinkSpecKind, Namespace};
use ipnetwork::IpNetwork;
use tokio::task::JoinSet;

use crate::{
    Blocks, Endpoint, Host, TestbedError,
    kernel::{Kernel, LinkState, addresses, default_route, mac},
    probe::{Ping, PingError, Pong, ping, serve},
};

/// A pod of a testbed: a network namespace behind a host, with a default route through it.
///
/// Clones are the same pod. The host keeps it until [`Host::remove_pod`].
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    subnet: Blocks,
    number: u32,
    _echo: JoinSet<()>,
}

impl Pod {
    /// Its name, such as `host1/pod1`.
    pub fn name(&self) -> &str {
        self.inner.endpoint.name()
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        self.inner.endpoint.namespace()
    }

    /// Its name, namespace and addresses, for probes.
    pub fn endpoint(&self) -> Endpoint {
        self.inner.endpoint.clone()
    }

    /// The subnet it has its addresses from.
    pub fn subnet(&self) -> Blocks {
        self.inner.subnet
    }

    /// Its first address, IPv4 before IPv6.
    pub fn ip(&self) -> IpAddr {
        let first = self.inner.endpoint.ips().next();
        first.expect("a pod has at least one address")
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.inner.endpoint.ipv4()
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.inner.endpoint.ipv6()
    }

    /// Sends one probe to the address `to`, see [`ping`].
    ///
    /// # Errors
    ///
    /// As [`ping`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the answer only.
    pub async fn ping(&self, to: IpAddr) -> Result<Pong, PingError> {
        ping(self, to, Ping::default()).await
    }

    /// As [`ping`](Self::ping) with a size, without fragments or with another patience.
    ///
    /// # Errors
    ///
    /// As [`ping`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the answer only.
    pub async fn ping_with(&self, to: IpAddr, how: Ping) -> Result<Pong, PingError> {
        ping(self, to, how).await
    }
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        pod.endpoint()
    }
}

/// Pods of a host.
impl Host {
    /// The host by the address that `pod` has as its gateway, which is inside of the pods' subnet.
    pub fn gateway_of(&self, pod: &Pod) -> Endpoint {
        let addresses = pod.subnet().nth(1).unwrap_or_default();
        Endpoint::new(self.name(), self.namespace(), &addresses)
    }

    /// Puts a pod behind the host, with the uplink's MTU.
    ///
    /// The pods of a host are on a bridge `cni0`, which has the first address of `subnet` and is the pods' gateway, as
    /// with flannel's CNI plugin. The pod gets the lowest free address from the second on.
    ///
    /// # Errors
    ///
    /// [`TestbedError::AddressesExhausted`] when the subnet is full; the other variants when the kernel refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the bridge.
    pub async fn add_pod(&self, subnet: impl Into<Blocks>) -> Result<Pod, TestbedError> {
        let mtu = self.state().uplink.mtu;
        self.add_pod_with_mtu(subnet, mtu).await
    }

    /// As [`add_pod`](Self::add_pod), with an MTU in bytes, such as what a node says that pods may send.
    ///
    /// # Errors
    ///
    /// As [`add_pod`](Self::add_pod).
    ///
    /// # Cancel safety
    ///
    /// As [`add_pod`](Self::add_pod).
    pub async fn add_pod_with_mtu(
        &self,
        subnet: impl Into<Blocks>,
        mtu: u32,
    ) -> Result<Pod, TestbedError> {
        let subnet = subnet.into();
        let number = free_number(self.pods().iter().map(|pod| pod.inner.number));
        let name = format!("{}/pod{number}", self.name());
        let (gateway, own) = self.pod_addresses(subnet, &name)?;

        let mut bridge = LinkSpec::new(BRIDGE, LinkSpecKind::Bridge);
        bridge.mac = Some(mac(2, self.number()));
        let bridge = self.kernel().ensure(&bridge).await?;
        self.kernel().put(&addresses(&bridge, &gateway)).await?;

        let kernel = Kernel::create(&name).await?;
        let kind = LinkSpecKind::Veth {
            peer: "eth0".to_owned(),
            peer_namespace: Some(kernel.namespace().clone()),
        };
        let mut cable = LinkSpec::new(cable_name(number), kind);
        cable.mtu = Some(mtu);
        let cable = self.kernel().ensure(&cable).await?;
        let plugged = LinkChange { controller: Some(bridge.index), ..LinkChange::default() };
        self.kernel().alter(&cable, &plugged).await?;

        let device = kernel.link("eth0").await?;
        let up = LinkChange { up: Some(true), mtu: Some(mtu), ..LinkChange::default() };
        kernel.alter(&device, &up).await?;
        let mut objects = addresses(&device, &own);
        for gateway in &gateway {
            objects.push(default_route(gateway.ip(), &device));
        }
        kernel.put(&objects).await?;
        self.kernel().settle(&cable.name, LinkState::Running).await?;
        self.kernel().settle(BRIDGE, LinkState::Addressed).await?;
        kernel.settle(&device.name, LinkState::Addressed).await?;

        let mut echo = JoinSet::new();
        serve(kernel.namespace(), &mut echo)
            .map_err(|source| TestbedError::Echo { place: name.clone(), source })?;
        let pod = Pod {
            inner: Arc::new(Inner {
                endpoint: Endpoint::new(&name, kernel.namespace(), &own),
                subnet,
                number,
                _echo: echo,
            }),
        };
        self.state().pods.push(pod.clone());
        Ok(pod)
    }

    /// Takes a pod away; with the last one goes the bridge.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the pod half removed; another call finishes it.
    pub async fn remove_pod(&self, pod: &Pod) -> Result<(), TestbedError> {
        self.kernel().delete(&cable_name(pod.inner.number)).await?;
        self.state().pods.retain(|other| !Arc::ptr_eq(&other.inner, &pod.inner));
        if self.pods().is_empty() {
            self.kernel().delete(BRIDGE).await?;
        }
        Ok(())
    }

    /// The gateway's and the next pod's addresses in `subnet`.
    fn pod_addresses(
        &self,
        subnet: Blocks,
        name: &str,
    ) -> Result<(Vec<IpNetwork>, Vec<IpNetwork>), TestbedError> {
        let exhausted = |number| TestbedError::AddressesExhausted {
            place: name.to_owned(),
            number,
            block: subnet,
        };
        let taken: Vec<_> =
            self.pods().iter().flat_map(|pod| pod.endpoint().addresses().to_owned()).collect();
        let gateway = subnet.nth(1).ok_or_else(|| exhausted(1))?;
        for number in 2.. {
            let own = subnet.nth(number).ok_or_else(|| exhausted(number))?;
            if !own.iter().any(|address| taken.contains(address)) {
                return Ok((gateway, own));
            }
        }
        Err(exhausted(u32::MAX))
    }
}

fn free_number(taken: impl Iterator<Item = u32>) -> u32 {
    let taken: std::collections::BTreeSet<_> = taken.collect();
    (1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX)
}

fn cable_name(pod: u32) -> String {
    format!("pod{pod}")
}

/// As flannel's CNI plugin names it.
const BRIDGE: &str = "cni0";
