//! What one peer needs: a neighbour, a forwarding entry and a route, or a route alone.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_backend::{PeerPlan, route_mtu};
use flannel_core::{Lease, PeerFault, Subnet};
use flannel_netlink::state::{Address, ForwardingEntry, MacAddress, Neighbour, Object, Route};
use ipnetwork::IpNetwork;

use crate::{
    KIND,
    family::{Family, is_unicast},
    lease_data,
    underlay::OnLink,
};

/// Our own vtep of one family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Vtep {
    pub(crate) family: Family,
    /// The device.
    pub(crate) link: u32,
    /// Its Ethernet address.
    pub(crate) mac: MacAddress,
    /// Where its packets come from.
    pub(crate) local: IpAddr,
    /// The largest packet it takes, bytes.
    pub(crate) mtu: u32,
}

/// All that plans depend on, apart from the peer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    pub(crate) own: Lease,
    pub(crate) vteps: Vec<Vtep>,
    /// The device that leads to peers.
    pub(crate) uplink: u32,
    /// What is on its link; `None` without direct routing.
    pub(crate) on_link: Option<OnLink>,
    pub(crate) protocol: u8,
    pub(crate) table: u32,
    /// How large packets between the hosts may be, bytes, where that is less than usual; by the peer's public address.
    pub(crate) limits: BTreeMap<IpAddr, u32>,
}

impl Facts {
    /// The addresses of our devices: that of the subnet itself, which peers use as gateway.
    pub(crate) fn own_addresses(&self) -> Vec<Object> {
        let address = |vtep: &Vtep| {
            let block = vtep.family.block(&self.own.subnet)?;
            let mut address = Address::new(vtep.link, Family::single(block.network()));
            address.no_duplicate_detection = true;
            Some(address.into())
        };
        self.vteps.iter().filter_map(address).collect()
    }

    /// Whether packets to a peer at `public` go there as they are.
    pub(crate) fn is_direct(&self, public: IpAddr) -> bool {
        self.on_link.as_ref().is_some_and(|on_link| on_link.contains(public, self.uplink))
    }

    /// What `peer` needs. Families that the node does not have are not looked at, and what is wrong with one family does not
    /// stop the other. `conflict` says who else has an Ethernet address that the peer claims.
    pub(crate) fn plan(
        &self,
        peer: &Lease,
        conflict: impl Fn(Family, MacAddress) -> Option<Subnet>,
    ) -> PeerPlan {
        let mut plan = PeerPlan::default();
        // Case matters, as it does to flannel on Linux.
        if peer.attrs.backend_type != KIND {
            let theirs = peer.attrs.backend_type.clone().into_owned();
            plan.faults.push(PeerFault::OtherBackend { ours: KIND.into(), theirs });
            return plan;
        }
        for vtep in &self.vteps {
            if let Some(block) = vtep.family.block(&peer.subnet) {
                match self.plan_family(vtep, peer, block, &conflict) {
                    Ok(objects) => plan.objects.extend(objects),
                    Err(fault) => {
                        // Its senders learn of it at once, and may take the other family.
                        if matches!(fault, PeerFault::PathTooNarrow { .. }) {
                            plan.objects.push(self.route(block).unreachable().into());
                        }
                        plan.faults.push(fault);
                    }
                }
            }
        }
        plan
    }

    fn route(&self, block: IpNetwork) -> Route {
        Route { table: self.table, ..Route::new(block, self.protocol) }
    }

    fn plan_family(
        &self,
        vtep: &Vtep,
        peer: &Lease,
        block: IpNetwork,
        conflict: impl Fn(Family, MacAddress) -> Option<Subnet>,
    ) -> Result<Vec<Object>, PeerFault> {
        let refused = |detail| Err(PeerFault::Refused { detail });
        let Some(public) = vtep.family.public(&peer.attrs) else {
            return Err(PeerFault::NoAddress { family: vtep.family.named() });
        };
        if !is_unicast(public) {
            return refused(format!("no node is reached at {public}"));
        }
        if public == vtep.local || Some(public) == vtep.family.public(&self.own.attrs) {
            return refused(format!("its public address {public} is ours"));
        }
        if block.contains(vtep.local) {
            return refused(format!("it contains the address {} of our network card", vtep.local));
        }
        if block.contains(public) {
            return refused(format!("its public address {public} is inside of its own subnet"));
        }
        let mut route = self.route(block);
        let limit = self.limits.get(&public).copied();
        let mtu = |overhead, device| route_mtu(&block, limit?, overhead, device);
        if self.is_direct(public) {
            route.mtu = mtu(0, u32::MAX);
            return Ok(vec![route.via_gateway(public, self.uplink).into()]);
        }
        let needed = vtep.family.smallest_mtu() + vtep.family.overhead();
        // Over IPv4 the kernel sends what is too large in fragments. Over IPv6 it drops it, and no sender makes packets so small.
        if let Some(path_mtu) = limit.filter(|limit| public.is_ipv6() && *limit < needed) {
            let family = vtep.family.named();
            return Err(PeerFault::PathTooNarrow { family, path_mtu, needed });
        }
        route.mtu = mtu(vtep.family.overhead(), vtep.mtu);
        let mac = lease_data::parse(vtep.family.data(peer))
            .map_err(|detail| PeerFault::BadData { detail })?;
        if self.vteps.iter().any(|own| own.mac == mac) {
            return refused(format!("its Ethernet address {mac} is ours"));
        }
        if let Some(conflict) = conflict(vtep.family, mac) {
            return refused(format!("its Ethernet address {mac} is that of the peer {conflict}"));
        }
        let gateway = block.network();
        route = route.via_gateway(gateway, vtep.link);
        route.onlink = true;
        Ok(vec![
            Neighbour::new(vtep.link, gateway, mac).into(),
            ForwardingEntry::new(vtep.link, mac, public).into(),
            route.into(),
        ])
    }
}

#[cfg(test)]
mod plan_tests;
