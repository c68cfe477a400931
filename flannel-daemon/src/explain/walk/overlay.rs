//! What leads from this host to the peer's pods.

use std::net::IpAddr;

use flannel_backend::PROTOCOLS;
use flannel_core::Fields;
use flannel_netlink::state::{Link, LinkKind, MacAddress, Route, RouteKind, Via};
use ipnetwork::IpNetwork;

use super::{
    Broken, NODE_REPAIRS, broken,
    leases::{Ends, Peer},
    underlay::{Way, hop, what_is_wrong},
};
use crate::explain::facts::{Facts, Hop};

/// The device that encapsulates is there and as it should be; `None` if packets to this peer go as they are.
pub(super) fn device<'a>(
    facts: &'a Facts,
    ends: &Ends,
    way: &Way<'_>,
) -> Result<Option<(&'a Link, String)>, Broken> {
    let Some(tunnel) = &way.tunnel else { return Ok(None) };
    let (host, name) = (&facts.host, &tunnel.device);
    let wrong = |says: String| Err(broken("device", says, NODE_REPAIRS));
    let Some(device) = host.device_named(name) else {
        return wrong(format!("there is no device {name}"));
    };
    let LinkKind::Vxlan(vxlan) = &device.kind else {
        return wrong(format!("{name} is no VXLAN device"));
    };
    if vxlan.vni != tunnel.vni {
        return wrong(format!(
            "{name} has the VNI {}, and the network's is {}",
            vxlan.vni, tunnel.vni
        ));
    }
    if let Some(port) = vxlan.port.filter(|port| *port != tunnel.port) {
        return wrong(format!(
            "{name} uses the UDP port {port}, and the network's is {}",
            tunnel.port
        ));
    }
    if let Some(local) = vxlan.local.filter(|local| host.device_with(*local).is_none()) {
        return wrong(format!("{name} sends from {local}, which is no address of this host"));
    }
    if !device.up {
        return wrong(format!("{name} {}", what_is_wrong(device)));
    }
    let mtu = tunnel.mtu.unwrap_or(way.device.mtu).saturating_sub(tunnel.overhead);
    if device.mtu != mtu {
        return wrong(format!("{name} takes packets of {} bytes, expected {mtu}", device.mtu));
    }
    if let Some(told) = host.env.mtu.filter(|told| *told > device.mtu) {
        let says = format!(
            "pods are told to send {told} bytes ({}), and {name} takes {}",
            host.subnet_file.display(),
            device.mtu
        );
        return wrong(says);
    }
    let published = facts
        .stored
        .record_with(ends.near)
        .and_then(|(record, _)| mac_in(&record.lease().ok()?, ends.near));
    if let (Some(published), Some(mac)) = (published, device.mac)
        && published != mac
    {
        return wrong(format!(
            "{name} has the Ethernet address {mac}, and our lease tells peers {published}"
        ));
    }
    let own = ends.block.network();
    if !host.addresses.iter().any(|it| it.link == device.index && it.address.ip() == own) {
        return wrong(format!("{name} does not have the address {own}"));
    }
    Ok(Some((device, format!("{name}, VNI {}, MTU {}, address {own}", vxlan.vni, device.mtu))))
}

/// The route to the peer's subnet leads where it should, and nothing else goes before it.
pub(super) fn route(
    facts: &Facts,
    peer: &Peer,
    way: &Way<'_>,
    tunnel: Option<&Link>,
    far: IpAddr,
) -> Result<String, Broken> {
    const LINK: &str = "route";
    let (host, block) = (&facts.host, peer.block);
    let expected = match tunnel {
        Some(device) => Hop { link: device.index, gateway: Some(block.network()) },
        None => Hop { link: way.device.index, gateway: Some(peer.public) },
    };
    let Some(route) =
        host.routes.iter().filter(|it| it.destination == block).min_by_key(|it| it.metric)
    else {
        return Err(broken(LINK, format!("there is no route to {block}"), NODE_REPAIRS));
    };
    let led = match lead(facts, route) {
        Ok(led) => led,
        Err(says) => return Err(broken(LINK, says, NODE_REPAIRS)),
    };
    let by_others = !PROTOCOLS.contains(&route.protocol);
    let mut same = host.routes.iter().filter(|it| it.destination == block);
    if led != expected && by_others && same.any(|it| lead(facts, it) == Ok(expected)) {
        let says = format!(
            "a route of others to {block} with the metric {} leads {}, and goes before that of flannel-node",
            route.metric,
            host.shown(led)
        );
        let remedy = format!("remove it: ip route del {block} metric {}", route.metric);
        return Err(broken(LINK, says, remedy));
    }
    if led != expected {
        let says = format!(
            "the route to {block} leads {}, expected {}",
            host.shown(led),
            host.shown(expected)
        );
        return Err(broken(LINK, says, NODE_REPAIRS));
    }
    let taken = hop(facts, far);
    if taken != Ok(expected) {
        let taken = match &taken {
            Ok(taken) => format!("go {}", host.shown(*taken)),
            Err(why) => format!("go nowhere ({why})"),
        };
        return Err(past(far, block, &taken));
    }
    Ok(format!("{block} {}", host.shown(expected)))
}

/// Where one route leads to all peers, it is there and nothing else goes before it.
pub(super) fn route_to_all(facts: &Facts, far: IpAddr) -> Result<String, Broken> {
    const LINK: &str = "route";
    let host = &facts.host;
    let Some(network) = facts.stored.network(far.is_ipv4()) else {
        return Err(broken(LINK, "the network has no such addresses", "give addresses of pods"));
    };
    let Some(route) = host.routes.iter().find(|route| route.destination == network) else {
        return Err(broken(LINK, format!("there is no route to {network}"), NODE_REPAIRS));
    };
    let taken = hop(facts, far);
    match (&taken, route.link) {
        (Ok(hop), Some(link)) if hop.link == link => {
            Ok(format!("{network} through {}", host.name(link)))
        }
        (Ok(hop), _) => Err(past(far, network, &format!("go {}", host.shown(*hop)))),
        (Err(why), _) => Err(past(far, network, &format!("go nowhere ({why})"))),
    }
}

/// Any route but the default one, which leads out of the network: of backends whose state is not known here.
pub(super) fn any_route(facts: &Facts, far: IpAddr) -> Result<String, Broken> {
    let wrong = |says: String| Err(broken("route", says, NODE_REPAIRS));
    let covers = |route: &&Route| route.destination.prefix() > 0 && route.destination.contains(far);
    let routes = facts.host.routes.iter().filter(covers);
    match (hop(facts, far), routes.max_by_key(|route| route.destination.prefix())) {
        (Ok(hop), Some(_)) => Ok(format!("{far} {}", facts.host.shown(hop))),
        (Ok(hop), None) => {
            let leads = facts.host.shown(hop);
            wrong(format!("only the default route leads to {far}, {leads}"))
        }
        (Err(why), _) => wrong(format!("there is no route to {far}: {why}")),
    }
}

/// Something else is before the route.
fn past(far: IpAddr, route: IpNetwork, taken: &str) -> Broken {
    broken(
        "route",
        format!("packets to {far} {taken}, past the route to {route}"),
        format!(
            "remove the more specific route or the rule that they follow: ip route get {far}; ip rule"
        ),
    )
}

/// Through what a route leads, or in words why nowhere.
fn lead(facts: &Facts, route: &Route) -> Result<Hop, String> {
    let to = route.destination;
    if route.kind != RouteKind::Unicast {
        return Err(format!("the route to {to} drops packets"));
    }
    match route.via {
        Via::Gateway(gateway) => {
            let link = route.link.ok_or_else(|| format!("the route to {to} names no device"))?;
            Ok(Hop { link, gateway: Some(gateway) })
        }
        Via::Direct => {
            let link = route.link.ok_or_else(|| format!("the route to {to} names no device"))?;
            Ok(Hop { link, gateway: None })
        }
        Via::Nexthop(id) => {
            let nexthop = facts.host.nexthops.iter().find(|nexthop| nexthop.id == id);
            let nexthop = nexthop.ok_or_else(|| {
                format!(
                    "the route to {to} leads to the next hop {id}, which is none with a gateway"
                )
            })?;
            Ok(Hop { link: nexthop.link, gateway: Some(nexthop.gateway) })
        }
        _ => {
            Err(format!("the route to {to} leads to several gateways or through an encapsulation"))
        }
    }
}

/// The Ethernet address of the peer's device.
pub(super) fn mac(peer: &Peer) -> Result<MacAddress, Broken> {
    mac_in(&peer.lease, peer.public).ok_or_else(|| {
        let says = format!("the lease {} has no VtepMAC that can be used", peer.lease.subnet);
        broken("peer's lease", says, "start the node there again, and see what it logs")
    })
}

pub(super) fn neighbour(
    facts: &Facts,
    peer: &Peer,
    device: &Link,
    mac: MacAddress,
) -> Result<String, Broken> {
    let address = peer.block.network();
    let entry =
        facts.host.neighbours.iter().find(|it| (it.link, it.address) == (device.index, address));
    let says = match entry.and_then(|entry| entry.mac) {
        Some(found) if found == mac => return Ok(format!("{address} is {mac}")),
        Some(found) => format!(
            "{} has {address} at the Ethernet address {found}, and the peer's is {mac}",
            device.name
        ),
        None => format!("{} has no Ethernet address for {address}", device.name),
    };
    Err(broken("neighbour", says, NODE_REPAIRS))
}

pub(super) fn forwarding_entry(
    facts: &Facts,
    peer: &Peer,
    device: &Link,
    mac: MacAddress,
) -> Result<String, Broken> {
    let entry = facts.host.forwarding.iter().find(|it| (it.link, it.mac) == (device.index, mac));
    let says = match entry.and_then(|entry| entry.remote) {
        Some(found) if found == peer.public => return Ok(format!("{mac} is at {found}")),
        Some(found) => format!(
            "{} sends frames for {mac} to {found}, and the peer is at {}",
            device.name, peer.public
        ),
        None => format!("{} does not know where to send frames for {mac}", device.name),
    };
    Err(broken("forwarding entry", says, NODE_REPAIRS))
}

/// The Ethernet address that a lease publishes for the family of `address`.
fn mac_in(lease: &flannel_core::Lease, address: IpAddr) -> Option<MacAddress> {
    let data = match address {
        IpAddr::V4(_) => lease.attrs.backend_data.as_ref(),
        IpAddr::V6(_) => lease.attrs.backend_v6_data.as_ref(),
    };
    let fields = Fields::parse(data?.as_str()).ok()?;
    fields.parsed("VtepMAC", "an Ethernet address", |text| text.parse().ok()).ok()?
}
