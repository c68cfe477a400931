use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use flannel_core::{Lease, LeaseAttrs, NetworkConfig, RawJson, Subnet};
use flannel_netlink::{iface::Interface, state::IpFamily};
use ipnetwork::IpNetwork;

use crate::vni::Vni;

/// One of the two halves of a node. Each has a device of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The families that a network has.
    pub(crate) fn of(config: &NetworkConfig) -> Vec<Self> {
        Self::ALL.into_iter().filter(|family| family.network(config).is_some()).collect()
    }

    pub(crate) fn network(self, config: &NetworkConfig) -> Option<IpNetwork> {
        match self {
            Self::V4 => config.ipv4().map(|range| IpNetwork::V4(range.network())),
            Self::V6 => config.ipv6().map(|range| IpNetwork::V6(range.network())),
        }
    }

    pub(crate) fn block(self, subnet: &Subnet) -> Option<IpNetwork> {
        match self {
            Self::V4 => subnet.ipv4().map(IpNetwork::V4),
            Self::V6 => subnet.ipv6().map(IpNetwork::V6),
        }
    }

    /// Where peers reach the node that published these.
    pub(crate) fn public(self, attrs: &LeaseAttrs) -> Option<IpAddr> {
        match self {
            Self::V4 => attrs.public_ip.map(IpAddr::V4),
            Self::V6 => attrs.public_ipv6.map(IpAddr::V6),
        }
    }

    /// What the backend of that node published.
    pub(crate) const fn data(self, lease: &Lease) -> Option<&RawJson> {
        match self {
            Self::V4 => lease.attrs.backend_data.as_ref(),
            Self::V6 => lease.attrs.backend_v6_data.as_ref(),
        }
    }

    /// The interface's own address.
    pub(crate) fn local(self, uplink: &Interface) -> Option<IpAddr> {
        match self {
            Self::V4 => uplink.v4.map(IpAddr::V4),
            Self::V6 => uplink.v6.map(IpAddr::V6),
        }
    }

    /// The name of the device.
    pub(crate) fn device(self, vni: Vni) -> String {
        flannel_backend::vxlan_device(self.ip(), vni.number())
    }

    /// What encapsulation adds to a packet, bytes: an IP header of 20 or 40, a UDP header of 8, a VXLAN header of 8, and the inner
    /// Ethernet header of 14.
    pub(crate) const fn overhead(self) -> u32 {
        match self {
            Self::V4 => 50,
            Self::V6 => 70,
        }
    }

    /// The smallest MTU that a device of this family is of use with, bytes.
    pub(crate) const fn smallest_mtu(self) -> u32 {
        flannel_backend::smallest_mtu(self.ip())
    }

    pub(crate) const fn ip(self) -> IpFamily {
        match self {
            Self::V4 => IpFamily::V4,
            Self::V6 => IpFamily::V6,
        }
    }

    pub(crate) const fn named(self) -> flannel_core::Family {
        match self {
            Self::V4 => flannel_core::Family::Ipv4,
            Self::V6 => flannel_core::Family::Ipv6,
        }
    }

    /// `address` as a network of a single host.
    pub(crate) fn single(address: IpAddr) -> IpNetwork {
        IpNetwork::from(address)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.named().fmt(f)
    }
}

/// Whether a packet can be sent to it as to one node.
pub(crate) fn is_unicast(ip: IpAddr) -> bool {
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast)
}
