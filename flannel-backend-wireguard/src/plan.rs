//! Which peers the devices are to have: a plain function of leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use flannel_core::{Family, Lease, LeaseAttrs, PeerFault, Subnet};
use flannel_netlink::wireguard::{PeerConfig, PublicKey, SecretKey};
use ipnetwork::IpNetwork;

use crate::{
    config::{Mode, Settings, TunnelSpec},
    lease_data,
};

/// All that plans depend on, apart from the peers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Facts {
    pub(crate) settings: Settings,
    /// The devices that are there.
    pub(crate) tunnels: Vec<TunnelSpec>,
    pub(crate) own_key: PublicKey,
    /// The addresses of the network card.
    pub(crate) local: (Option<Ipv4Addr>, Option<Ipv6Addr>),
}

/// A peer of a device as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PeerSpec {
    /// Where its lease says it is.
    pub(crate) endpoint: SocketAddr,
    pub(crate) allowed_ips: BTreeSet<IpNetwork>,
    pub(crate) preshared_key: Option<SecretKey>,
    pub(crate) keepalive: u16,
}

impl PeerSpec {
    pub(crate) fn config(&self, key: PublicKey, endpoint: Option<SocketAddr>) -> PeerConfig {
        PeerConfig {
            key,
            preshared_key: self.preshared_key.clone(),
            endpoint,
            keepalive: self.keepalive,
            allowed_ips: self.allowed_ips.clone(),
        }
    }
}

/// What all peers need.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Plan {
    /// For each device.
    pub(crate) peers: Vec<BTreeMap<PublicKey, PeerSpec>>,
    pub(crate) faults: BTreeMap<Subnet, Vec<PeerFault>>,
    /// Whose key it is.
    pub(crate) holders: BTreeMap<PublicKey, BTreeSet<Subnet>>,
    /// Behind which peer each block is, and of which device.
    pub(crate) blocks: BTreeMap<IpNetwork, (usize, PublicKey)>,
}

impl Plan {
    /// Where a block is reached, and by which device.
    pub(crate) fn endpoint(&self, block: &IpNetwork) -> Option<(usize, SocketAddr)> {
        let (number, key) = self.blocks.get(block)?;
        Some((*number, self.peers[*number].get(key)?.endpoint))
    }

    /// Lets the kernel begin handshakes with peers that nothing is sent to yet: those all of whose subnets are on standby.
    pub(crate) fn shake_hands_with(&mut self, is_standby: impl Fn(&Subnet) -> bool) {
        for (key, subnets) in &self.holders {
            if subnets.iter().all(&is_standby) {
                let specs = self.peers.iter_mut().filter_map(|peers| peers.get_mut(key));
                for spec in specs.filter(|spec| spec.keepalive == 0) {
                    spec.keepalive = STANDBY_KEEPALIVE;
                }
            }
        }
    }
}

impl Facts {
    /// What `leases` need: of two that contradict each other, the first one counts. A fault of one family of a peer does not stop the
    /// other.
    pub(crate) fn plan<'a>(
        &self,
        own: &Lease,
        leases: impl IntoIterator<Item = &'a Lease>,
    ) -> Plan {
        let mut plan = Plan::default();
        plan.peers.resize(self.tunnels.len(), BTreeMap::new());
        let ours = self.settings.instance.name();
        for peer in leases {
            if peer.attrs.backend_type != ours {
                let theirs = peer.attrs.backend_type.clone().into_owned();
                let fault = PeerFault::OtherBackend { ours: ours.into(), theirs };
                plan.faults.entry(peer.subnet).or_default().push(fault);
                continue;
            }
            for (number, tunnel) in self.tunnels.iter().enumerate() {
                let added = self.add(own, peer, tunnel, number, &mut plan);
                if let Err(fault) = added {
                    plan.faults.entry(peer.subnet).or_default().push(fault);
                }
            }
        }
        plan
    }

    fn add(
        &self,
        own: &Lease,
        peer: &Lease,
        tunnel: &TunnelSpec,
        number: usize,
        plan: &mut Plan,
    ) -> Result<(), PeerFault> {
        let has = |family: &&Family| {
            block(&own.subnet, **family).is_some() && block(&peer.subnet, **family).is_some()
        };
        let families: Vec<_> = tunnel.families.iter().filter(has).copied().collect();
        let Some(last) = families.last() else { return Ok(()) };
        let bad = |detail| PeerFault::BadData { detail };
        // As with flannel, the key of a peer with both families is that of IPv6.
        let (key, _) = lease_data::parse(data(&peer.attrs, *last)).map_err(bad)?;
        let refused = |detail| Err(PeerFault::Refused { detail });
        if key == self.own_key {
            return refused("its public key is ours".into());
        }
        let endpoint = self.endpoint(&peer.attrs, tunnel, *last)?;
        let ip = endpoint.ip();
        if ip.is_unspecified() {
            return refused(format!("no node is reached at {ip}"));
        }
        if [self.local.0.map(IpAddr::V4), self.local.1.map(IpAddr::V6)].contains(&Some(ip)) {
            return refused(format!("its public address {ip} is ours"));
        }
        let blocks: Vec<_> = families.iter().filter_map(|it| block(&peer.subnet, *it)).collect();
        if let Some(block) = blocks.iter().find(|block| block.contains(ip)) {
            return refused(format!("its public address {ip} is inside of its own subnet {block}"));
        }
        // The kernel would give it to the one that was set last, and take it from the other.
        let is_taken = |block: &IpNetwork| {
            plan.blocks.get(block).filter(|(_, other)| *other != key)?;
            plan.endpoint(block)
        };
        let taken = blocks.iter().find_map(|block| Some((*block, is_taken(block)?.1)));
        let blocks: Vec<_> = blocks.into_iter().filter(|it| is_taken(it).is_none()).collect();
        let mut moved = None;
        if !blocks.is_empty() {
            let spec = plan.peers[number].entry(key).or_insert_with(|| PeerSpec {
                endpoint,
                allowed_ips: BTreeSet::new(),
                preshared_key: self.settings.preshared_key.clone(),
                keepalive: self.settings.keepalive,
            });
            // A node may have left an older lease behind, also one with another address.
            spec.allowed_ips.extend(&blocks);
            moved = Some(spec.endpoint).filter(|it| *it != endpoint);
            plan.holders.entry(key).or_default().insert(peer.subnet);
            plan.blocks.extend(blocks.into_iter().map(|block| (block, (number, key))));
        }
        match (taken, moved) {
            (Some((block, other)), _) => refused(format!("{block} is that of the peer at {other}")),
            (_, Some(other)) => refused(format!("its public key is that of the peer at {other}")),
            _ => Ok(()),
        }
    }

    /// Where the node is that published `attrs`, for a device whose last family is `last`.
    pub(crate) fn endpoint(
        &self,
        attrs: &LeaseAttrs,
        tunnel: &TunnelSpec,
        last: Family,
    ) -> Result<SocketAddr, PeerFault> {
        let over = match self.settings.mode {
            Mode::Separate => last,
            Mode::Over(family) => family,
            Mode::Auto => self.best(attrs),
        };
        let address = address(attrs, over).ok_or(PeerFault::NoAddress { family: over })?;
        // Without data of that family there is no port either.
        let port = data(attrs, over).map(|data| lease_data::parse(Some(data))).transpose();
        let (_, port) =
            port.map_err(|detail| PeerFault::BadData { detail })?.unwrap_or((self.own_key, None));
        Ok(SocketAddr::new(address, port.unwrap_or(tunnel.port)))
    }

    /// As flannel's `selectMode`: a public address, if either family has one.
    fn best(&self, attrs: &LeaseAttrs) -> Family {
        let LeaseAttrs { public_ip, public_ipv6, .. } = attrs;
        match (public_ip, public_ipv6) {
            (_, None) => Family::Ipv4,
            (None, Some(_)) => Family::Ipv6,
            (Some(v4), _) if !v4.is_private() && self.local.0.is_some() => Family::Ipv4,
            (_, Some(v6)) if !v6.is_unique_local() => match self.local.1 {
                Some(ours) if !ours.is_unique_local() => Family::Ipv6,
                _ => Family::Ipv4,
            },
            _ => Family::Ipv4,
        }
    }
}

/// Seconds: WireGuard repeats a handshake that is not answered after 5 s.
const STANDBY_KEEPALIVE: u16 = 5;

pub(crate) fn block(subnet: &Subnet, family: Family) -> Option<IpNetwork> {
    match family {
        Family::Ipv4 => subnet.ipv4().map(IpNetwork::V4),
        Family::Ipv6 => subnet.ipv6().map(IpNetwork::V6),
    }
}

fn data(attrs: &LeaseAttrs, family: Family) -> Option<&flannel_core::RawJson> {
    match family {
        Family::Ipv4 => attrs.backend_data.as_ref(),
        Family::Ipv6 => attrs.backend_v6_data.as_ref(),
    }
}

pub(crate) fn address(attrs: &LeaseAttrs, family: Family) -> Option<IpAddr> {
    match family {
        Family::Ipv4 => attrs.public_ip.map(IpAddr::V4),
        Family::Ipv6 => attrs.public_ipv6.map(IpAddr::V6),
    }
}

#[cfg(test)]
mod plan_tests;
