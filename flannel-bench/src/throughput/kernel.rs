//! What the kernel does by itself: static routes, and a VXLAN made with as few calls as possible.

use std::net::IpAddr;

use anyhow::{Context, Result};
use flannel_netlink::{
    LinkSpec, LinkSpecKind, ensure_link,
    state::{Address, ForwardingEntry, MacAddress, Neighbour, Object, Route, Vxlan},
};
use flannel_testbed::Host;
use futures::future::{BoxFuture, FutureExt as _};
use ipnetwork::IpNetwork;

use super::paths::Running;
use crate::{args::Family, network::own_block};

/// Leads packets over the link as they are.
pub(super) fn routes(hosts: &[Host], family: Family) -> BoxFuture<'_, Result<Running>> {
    async move {
        let [a, b] = hosts else { unreachable!("there are two hosts") };
        a.add_route(own_block(1, family), b).await?;
        b.add_route(own_block(0, family), a).await?;
        // It lives as long as its namespace.
        Ok(Running::new(()))
    }
    .boxed()
}

/// Leads packets through a VXLAN.
pub(super) fn vxlan(hosts: &[Host], family: Family) -> BoxFuture<'_, Result<Running>> {
    async move {
        let [a, b] = hosts else { unreachable!("there are two hosts") };
        tunnel(a, 0, b.ip(), family).await?;
        tunnel(b, 1, a.ip(), family).await?;
        // It lives as long as its namespace.
        Ok(Running::new(()))
    }
    .boxed()
}

/// Makes host number `own` of two one end of a VXLAN whose other end is at `remote`.
async fn tunnel(host: &Host, own: u8, remote: IpAddr, family: Family) -> Result<()> {
    let mut connection = host.connect()?;
    let mut vxlan = Vxlan::new(VNI);
    (vxlan.port, vxlan.local) = (Some(PORT), Some(host.ip()));
    let mut spec = LinkSpec::new("vxlan1", LinkSpecKind::Vxlan(vxlan));
    (spec.mac, spec.mtu) = (Some(mac(own)), Some(MTU - overhead(family)));
    let (device, _) = ensure_link(&mut connection, &spec).await?;
    let other = 1 - own;
    let (near, far) = (block(own, family)?, block(other, family)?);
    let mut route = Route::new(far, STATIC).via_gateway(far.network(), device.index);
    route.onlink = true;
    let objects: [Object; 4] = [
        Address::new(device.index, near.network().into()).into(),
        Neighbour::new(device.index, far.network(), mac(other)).into(),
        ForwardingEntry::new(device.index, mac(other), remote).into(),
        route.into(),
    ];
    for object in objects {
        let written = connection.apply_one(object.replace()).await;
        written.with_context(|| format!("cannot write {object} on {}", host.name()))?;
    }
    Ok(())
}

/// The block of a host's pods.
pub(super) fn block(number: u8, family: Family) -> Result<IpNetwork> {
    own_block(number, family).iter().next().context("a host has a block")
}

/// What VXLAN puts around a packet, bytes: outer IP, UDP and VXLAN headers, inner Ethernet header.
pub(super) fn overhead(family: Family) -> u32 {
    ip_header(family) + 8 + 8 + 14
}

/// Of the underlay's packets, bytes.
pub(super) const fn ip_header(family: Family) -> u32 {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

const fn mac(number: u8) -> MacAddress {
    MacAddress::new([0x02, 0xf3, 0, 0, 0, number + 1])
}

/// The testbed's, as on Ethernet.
pub(super) const MTU: u32 = 1500;
/// flannel's own.
const VNI: u32 = 1;
/// The kernel's, which flannel uses on Linux.
const PORT: u16 = 8472;
/// Routes made by an administrator, linux/rtnetlink.h.
pub(super) const STATIC: u8 = 4;
