//! Whom to ask, and from where.

use std::net::IpAddr;

use flannel_core::Subnet;
use flannel_netlink::state::IpFamily;

/// All that is probed and answered.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Targets {
    /// Our own ends, one for each family at most. Without one of its family a peer is not probed.
    pub ends: Vec<End>,
    /// The peers. Nobody else is answered.
    pub peers: Vec<Target>,
}

/// Our own end of one family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    /// The address that packets between the hosts come from.
    pub local: IpAddr,
    /// Our address inside of the network, if packets to peers are encapsulated.
    pub overlay: Option<IpAddr>,
    /// The size of IP packets that should pass between the hosts, bytes.
    pub needed: u32,
}

/// One path to one peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    /// The peer.
    pub peer: Subnet,
    /// Its host, of the family to ask in.
    pub address: IpAddr,
    /// Its address inside of the network, if packets to it are encapsulated.
    pub overlay: Option<IpAddr>,
}

impl Targets {
    /// These peers, probed from these ends.
    pub fn new(ends: Vec<End>, peers: Vec<Target>) -> Self {
        Self { ends, peers }
    }

    pub(crate) fn end(&self, family: IpFamily) -> Option<&End> {
        self.ends.iter().find(|end| end.family() == family)
    }
}

impl End {
    pub(crate) fn family(&self) -> IpFamily {
        IpFamily::of(&self.local)
    }
}

impl Target {
    pub(crate) fn family(&self) -> IpFamily {
        IpFamily::of(&self.address)
    }
}
