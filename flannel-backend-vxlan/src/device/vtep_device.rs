//! One device: what it should be, and making it so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::{BackendError, Lease, NodeId};
use flannel_netlink::{
    Connection, Ensured, KernelError, LinkSpec, LinkSpecKind, LogLimit, RateLimit, ensure_link,
    iface::Interface,
    state::{Link, LinkKind, MacAddress, Vxlan},
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{DeviceState, checksums::Checksums};
use crate::{config::Settings, family::Family, lease_data, mac::derived, plan::Vtep};

#[derive(Debug)]
pub(super) struct Device {
    pub(super) family: Family,
    pub(super) name: String,
    /// What we publish, and put back; `None` before the first look at the kernel.
    pub(super) mac: Option<MacAddress>,
    /// What it was last made to be, and what it was then.
    pub(super) last: Option<(Wanted, Link)>,
    /// Repairs against somebody who keeps altering it.
    pub(super) repairs: RateLimit,
    /// How often it is said that it was put right.
    pub(super) log: LogLimit,
    pub(super) forwarding_error: Option<String>,
    pub(super) checksums: Checksums,
}

/// What a device should be, apart from its Ethernet address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Wanted {
    pub(super) local: IpAddr,
    pub(super) mtu: u32,
    pub(super) learning: bool,
}

impl Device {
    pub(super) fn new(family: Family, name: String) -> Self {
        Self {
            family,
            name,
            mac: None,
            last: None,
            repairs: RateLimit::REPAIRS,
            log: LogLimit::default(),
            forwarding_error: None,
            checksums: Checksums::default(),
        }
    }

    pub(super) fn wanted(
        &self,
        settings: &Settings,
        uplink: &Interface,
    ) -> Result<Wanted, BackendError> {
        let family = self.family;
        let unusable = |reason: String| BackendError::Interface { source: reason.into() };
        let local = family
            .local(uplink)
            .ok_or_else(|| unusable(format!("{} has no {family} address", uplink.name)))?;
        let mtu = settings.device_mtu(family, uplink);
        if mtu < family.smallest_mtu() {
            return Err(unusable(format!(
                "{} has an MTU of {} bytes, and {family} over vxlan needs {}",
                uplink.name,
                uplink.mtu,
                family.smallest_mtu() + family.overhead()
            )));
        }
        Ok(Wanted { local, mtu, learning: settings.learning })
    }

    /// Whose Ethernet address counts: at first that of a device which is there, which peers may know already; later ours, whatever
    /// others set. Who follows somebody else's choice breaks the way of every peer here, and the next choice is as likely.
    pub(super) fn choose_mac(
        &mut self,
        actual: Option<&Link>,
        previous: Option<&Lease>,
        node: &NodeId,
    ) -> MacAddress {
        if let Some(mac) = self.mac {
            return mac;
        }
        let actual = actual.filter(|link| matches!(link.kind, LinkKind::Vxlan(_)));
        let actual = actual.and_then(|link| link.mac).filter(|mac| mac.is_unicast());
        let published = previous.filter(|lease| lease.attrs.backend_type == crate::KIND);
        let published = published.and_then(|lease| lease_data::parse(self.family.data(lease)).ok());
        let mac = actual.or(published).unwrap_or_else(|| derived(node, &self.name));
        self.mac = Some(mac);
        mac
    }

    pub(super) async fn make(
        &mut self,
        connection: &mut Connection,
        settings: &Settings,
        wanted: Wanted,
        mac: MacAddress,
        actual: Option<&Link>,
    ) -> Result<(Link, Ensured), KernelError> {
        let mut vxlan = Vxlan::new(settings.vni.number());
        // Unset, it is the kernel's choice for a new device, and as with flannel whatever a device has that is there.
        vxlan.port = settings.port;
        vxlan.local = Some(wanted.local);
        vxlan.learning = wanted.learning;
        vxlan.gbp = settings.gbp;
        // A new device is not bound to the uplink: it would vanish with it. What flanneld has bound stays so, and what somebody
        // binds later does not.
        let left = self.last.as_ref().map(|(_, left)| left);
        let is_same = |left: &&Link| actual.is_some_and(|actual| actual.index == left.index);
        if let Some(LinkKind::Vxlan(left)) = left.filter(is_same).map(|left| &left.kind) {
            let nobody = match wanted.local {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            vxlan.parent = left.parent.or(Some(0));
            vxlan.group = left.group.or(Some(nobody));
        }
        let mut spec = LinkSpec::new(&self.name, LinkSpecKind::Vxlan(vxlan));
        spec.mac = Some(mac);
        spec.mtu = Some(wanted.mtu);
        spec.no_link_local = true;
        match ensure_link(connection, &spec).await {
            Err(error) if actual.is_some_and(|actual| actual.mac != Some(mac)) => {
                // It may be the Ethernet address that cannot be had. Peers must know the real one then.
                spec.mac = None;
                let (link, ensured) =
                    ensure_link(connection, &spec).await.map_err(|_| error.clone())?;
                warn!(device = self.name, wanted = %mac, %error, "cannot set the Ethernet address: publishing the one it has");
                self.mac = link.mac.or(self.mac);
                Ok((link, ensured))
            }
            result => result,
        }
    }

    pub(super) fn log(&mut self, link: &Link, ensured: Ensured, wanted: Wanted, now: Instant) {
        if self.log.allows(now).is_none() {
            return;
        }
        let how = match ensured {
            Ensured::Adopted => "device adopted",
            Ensured::Altered if self.last.is_none() => "device adopted and altered",
            Ensured::Altered => "device put right",
            Ensured::Created => "device created",
            _ => "device of other kind or attributes replaced",
        };
        let mac = link.mac.map(tracing::field::display);
        let port = vxlan_port(link);
        info!(device = self.name, mac, mtu = link.mtu, local = %wanted.local, port, "{how}");
    }

    pub(super) fn add_to(&self, state: &mut DeviceState, wanted: Wanted, link: &Link) {
        let Some(mac) = self.mac else { return };
        let Wanted { local, mtu, .. } = wanted;
        state.vteps.push(Vtep { family: self.family, link: link.index, mac, local, mtu });
        state.links.push(Link { mac: Some(mac), mtu, up: true, ..link.clone() });
    }
}

/// Whether a device is as it was left.
pub(super) fn is_same(actual: &Link, left: &Link) -> bool {
    let compared = |link: &Link| (link.index, link.mac, link.mtu, link.up, link.link_local);
    compared(actual) == compared(left) && actual.kind == left.kind
}

pub(super) fn vxlan_port(link: &Link) -> Option<u16> {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => vxlan.port,
        _ => None,
    }
}
