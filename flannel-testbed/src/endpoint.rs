use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_netlink::Namespace;
use ipnetwork::IpNetwork;

/// A place that can send probes and answers them: a host or a pod, with the addresses it had when asked.
#[derive(Clone, Debug)]
pub struct Endpoint {
    name: String,
    namespace: Namespace,
    addresses: Vec<IpNetwork>,
}

impl Endpoint {
    pub(crate) fn new(name: &str, namespace: &Namespace, addresses: &[IpNetwork]) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.clone(),
            addresses: addresses.to_owned(),
        }
    }

    /// Its name in tables and messages, such as `host1` or `host1/pod2`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace it lives in.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its addresses with their prefix lengths, IPv4 first.
    pub fn addresses(&self) -> &[IpNetwork] {
        &self.addresses
    }

    /// Its first IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpNetwork::V4(v4) => Some(v4.ip()),
            IpNetwork::V6(_) => None,
        })
    }

    /// Its first IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpNetwork::V4(_) => None,
            IpNetwork::V6(v6) => Some(v6.ip()),
        })
    }

    /// Its first address of each family, IPv4 first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.ipv4().map(IpAddr::V4);
        ipv4.into_iter().chain(self.ipv6().map(IpAddr::V6))
    }
}

impl From<&Self> for Endpoint {
    fn from(endpoint: &Self) -> Self {
        endpoint.clone()
    }
}
