//! The kernel objects of a converged node, to be written by others for comparison.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use flannel_netlink::{
    LinkSpec, LinkSpecKind, ensure_link, link_by_name, list_addresses, list_forwarding, list_links,
    list_neighbours, list_nexthops, list_routes,
    state::{AddressFilter, IpFamily, Link, LinkKind, Object, Route, Via},
};
use flannel_testbed::Host;
use ipnetwork::IpNetwork;

/// What a node put on its host for its peers, and its device if it has one.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) uplink: Link,
    pub(crate) device: Option<Link>,
    /// Addresses of the device.
    pub(crate) addresses: Vec<Object>,
    /// In an order in which they can be written.
    pub(crate) objects: Vec<Object>,
}

impl Captured {
    /// Reads what serves the pods' `network` on a host.
    pub(crate) async fn read(host: &Host, network: IpNetwork) -> Result<Self> {
        let mut connection = host.connect()?;
        let links = list_links(&mut connection).await?;
        let uplink = links.iter().find(|link| link.name == UPLINK).cloned();
        let uplink = uplink.context("the host has no uplink")?;
        let device = links.into_iter().find(|link| matches!(link.kind, LinkKind::Vxlan(_)));
        let mut objects: Vec<Object> = Vec::new();
        let mut addresses = Vec::new();
        if let Some(device) = &device {
            let filter = AddressFilter { link: Some(device.index) };
            let listed = list_addresses(&mut connection, filter).await?;
            let ipv4 = listed.into_iter().filter(|address| address.address.is_ipv4());
            addresses.extend(ipv4.map(Object::from));
            let neighbours = list_neighbours(&mut connection, device.index).await?;
            objects.extend(neighbours.into_iter().filter(|it| it.permanent).map(Object::from));
            let forwarding = list_forwarding(&mut connection, device.index).await?;
            let ours = forwarding.into_iter().filter(|it| it.permanent && it.remote.is_some());
            objects.extend(ours.map(Object::from));
        }
        let routes = list_routes(&mut connection, Route::MAIN, IpFamily::V4).await?;
        let inside = |route: &Route| contains(network, route.destination);
        let routes: Vec<_> =
            routes.into_iter().filter(|route| route.protocol != KERNEL && inside(route)).collect();
        let nexthops = list_nexthops(&mut connection).await?;
        let used = |id: u32| routes.iter().any(|route| route.via == Via::Nexthop(id));
        match routes.first().map(|route| route.via) {
            Some(Via::Nexthop(_)) if routes.len() > nexthops.len() / 2 => {
                let protocol = routes[0].protocol;
                let ours = nexthops.into_iter().filter(|nexthop| nexthop.protocol == protocol);
                objects.extend(ours.map(Object::from));
            }
            _ => objects.extend(nexthops.into_iter().filter(|it| used(it.id)).map(Object::from)),
        }
        objects.extend(routes.into_iter().map(Object::from));
        Ok(Self { uplink, device, addresses, objects })
    }

    /// Makes the device on another host and returns the same objects for there. Writes none of them.
    pub(crate) async fn moved_to(&self, host: &Host) -> Result<Self> {
        let mut connection = host.connect()?;
        let uplink = link_by_name(&mut connection, UPLINK).await?;
        let uplink = uplink.context("the host has no uplink")?;
        let mut indexes = BTreeMap::from([(self.uplink.index, uplink.index)]);
        let mut device = None;
        if let Some(Link { name, kind: LinkKind::Vxlan(vxlan), mac, mtu, index, .. }) = &self.device
        {
            let mut vxlan = *vxlan;
            vxlan.parent = vxlan.parent.and_then(|parent| indexes.get(&parent).copied());
            let mut spec = LinkSpec::new(name, LinkSpecKind::Vxlan(vxlan));
            (spec.mac, spec.mtu) = (*mac, Some(*mtu));
            let (made, _) = ensure_link(&mut connection, &spec).await?;
            indexes.insert(*index, made.index);
            device = Some(made);
        }
        let moved = |object: &Object| {
            with_link(*object, |index| indexes.get(&index).copied().unwrap_or(index))
        };
        let addresses: Vec<_> = self.addresses.iter().map(moved).collect();
        for address in &addresses {
            connection.apply_one(address.replace()).await?;
        }
        Ok(Self { uplink, device, addresses, objects: self.objects.iter().map(moved).collect() })
    }

    /// The objects of each peer: its route, and what that needs.
    pub(crate) fn by_peer(&self) -> Vec<Vec<Object>> {
        let mut nexthops = BTreeMap::new();
        let mut neighbours = BTreeMap::new();
        let mut forwarding = BTreeMap::new();
        for object in &self.objects {
            match object {
                Object::Nexthop(it) => drop(nexthops.insert(it.id, *it)),
                Object::Neighbour(it) => drop(neighbours.insert((it.link, it.address), *it)),
                Object::ForwardingEntry(it) => drop(forwarding.insert((it.link, it.mac), *it)),
                _ => {}
            }
        }
        let routes = self.objects.iter().filter_map(|object| match object {
            Object::Route(route) => Some(route),
            _ => None,
        });
        routes
            .map(|route| {
                let mut objects = Vec::new();
                let gateway = match route.via {
                    Via::Nexthop(id) => nexthops.get(&id).map(|it| (it.link, it.gateway)),
                    Via::Gateway(gateway) => route.link.map(|link| (link, gateway)),
                    _ => None,
                };
                if let Some(neighbour) = gateway.and_then(|gateway| neighbours.get(&gateway)) {
                    objects.push(Object::Neighbour(*neighbour));
                    let entry =
                        neighbour.mac.and_then(|mac| forwarding.get(&(neighbour.link, mac)));
                    objects.extend(entry.copied().map(Object::ForwardingEntry));
                }
                if let Via::Nexthop(id) = route.via {
                    objects.extend(nexthops.get(&id).copied().map(Object::Nexthop));
                }
                objects.push(Object::Route(*route));
                objects
            })
            .collect()
    }

    /// The same with plain routes in the place of those through nexthop objects.
    pub(crate) fn with_plain_routes(&self) -> Vec<Object> {
        let nexthops: BTreeMap<_, _> = self
            .objects
            .iter()
            .filter_map(|object| match object {
                Object::Nexthop(nexthop) => Some((nexthop.id, *nexthop)),
                _ => None,
            })
            .collect();
        let plain = |object: &Object| match object {
            Object::Nexthop(_) => None,
            Object::Route(Route { via: Via::Nexthop(id), .. }) => {
                let Object::Route(mut route) = *object else { return None };
                let nexthop = nexthops.get(id)?;
                route = route.via_gateway(nexthop.gateway, nexthop.link);
                route.onlink = nexthop.onlink;
                Some(Object::Route(route))
            }
            other => Some(*other),
        };
        self.objects.iter().filter_map(plain).collect()
    }

    /// The lines for `ip -batch` and for `bridge -batch` that write these objects.
    pub(crate) fn batch(&self, objects: &[Object]) -> (String, String) {
        let name = |index: u32| match &self.device {
            Some(device) if device.index == index => device.name.as_str(),
            _ => UPLINK,
        };
        let (mut ip, mut bridge) = (String::new(), String::new());
        for object in objects {
            match line(object, &name) {
                Some(Line::Ip(line)) => ip += &line,
                Some(Line::Bridge(line)) => bridge += &line,
                None => {}
            }
        }
        (ip, bridge)
    }
}

enum Line {
    Bridge(String),
    Ip(String),
}

fn line<'a>(object: &Object, name: &impl Fn(u32) -> &'a str) -> Option<Line> {
    let onlink = |onlink: bool| if onlink { " onlink" } else { "" };
    Some(match object {
        Object::ForwardingEntry(it) => {
            let (mac, device) = (it.mac, name(it.link));
            Line::Bridge(format!(
                "fdb replace {mac} dev {device} dst {} self permanent\n",
                it.remote?
            ))
        }
        Object::Neighbour(it) => {
            let (address, device) = (it.address, name(it.link));
            Line::Ip(format!(
                "neigh replace {address} lladdr {} dev {device} nud permanent\n",
                it.mac?
            ))
        }
        Object::Nexthop(it) => {
            let (id, gateway, device, onlink) =
                (it.id, it.gateway, name(it.link), onlink(it.onlink));
            let protocol = it.protocol;
            Line::Ip(format!(
                "nexthop replace id {id} via {gateway} dev {device}{onlink} proto {protocol}\n"
            ))
        }
        Object::Route(it) => {
            let (destination, protocol) = (it.destination, it.protocol);
            let via = match it.via {
                Via::Nexthop(id) => format!("nhid {id}"),
                Via::Gateway(gateway) => {
                    format!("via {gateway} dev {}{}", name(it.link?), onlink(it.onlink))
                }
                _ => return None,
            };
            Line::Ip(format!("route replace {destination} {via} proto {protocol}\n"))
        }
        _ => return None,
    })
}

fn with_link(object: Object, index: impl Fn(u32) -> u32) -> Object {
    match object {
        Object::Address(mut it) => {
            it.link = index(it.link);
            it.into()
        }
        Object::ForwardingEntry(mut it) => {
            it.link = index(it.link);
            it.into()
        }
        Object::Neighbour(mut it) => {
            it.link = index(it.link);
            it.into()
        }
        Object::Nexthop(mut it) => {
            it.link = index(it.link);
            it.into()
        }
        Object::Route(mut it) => {
            it.link = it.link.map(index);
            it.into()
        }
        other => other,
    }
}

fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    match (outer, inner) {
        (IpNetwork::V4(outer), IpNetwork::V4(inner)) => inner.is_subnet_of(outer),
        (IpNetwork::V6(outer), IpNetwork::V6(inner)) => inner.is_subnet_of(outer),
        _ => false,
    }
}

/// A host's network card in a testbed.
pub(crate) const UPLINK: &str = "eth0";

/// The protocol number of routes that the kernel makes for its own addresses, `RTPROT_KERNEL`.
const KERNEL: u8 = 2;

#[cfg(test)]
mod tests {
    use flannel_netlink::state::{ForwardingEntry, MacAddress, Neighbour, Nexthop, Vxlan};

    use super::*;

    fn link(index: u32, name: &str, kind: LinkKind) -> Link {
        Link {
            index,
            name: name.into(),
            kind,
            mac: None,
            mtu: 1500,
            queue: 0,
            up: true,
            running: true,
            loopback: false,
            controller: None,
            parent: None,
            link_local: true,
        }
    }

    fn vxlan_peers(count: u8) -> Captured {
        let mut objects = Vec::new();
        for n in 1..=count {
            let (vtep, mac) = ([10, 1, n, 0].into(), MacAddress::new([2, 0, 0, 0, 0, n]));
            let mut nexthop = Nexthop::new(n.into(), 7, vtep, 241);
            nexthop.onlink = true;
            let block = format!("10.1.{n}.0/24").parse().unwrap();
            objects.extend::<[Object; 4]>([
                Neighbour::new(7, vtep, mac).into(),
                ForwardingEntry::new(7, mac, [198, 18, 0, n].into()).into(),
                nexthop.into(),
                Route::new(block, 241).via_nexthop(n.into()).into(),
            ]);
        }
        Captured {
            uplink: link(2, UPLINK, LinkKind::Veth),
            device: Some(link(7, "flannel.1", LinkKind::Vxlan(Vxlan::new(1)))),
            addresses: Vec::new(),
            objects,
        }
    }

    #[test]
    fn every_object_belongs_to_one_peer() {
        let captured = vxlan_peers(3);
        let peers = captured.by_peer();
        assert_eq!(peers.concat(), captured.objects);
        assert_eq!(peers.len(), 3);
    }

    #[test]
    fn batches_are_what_a_person_would_type() {
        let captured = vxlan_peers(1);
        let (ip, bridge) = captured.batch(&captured.objects);
        assert_eq!(
            bridge,
            "fdb replace 02:00:00:00:00:01 dev flannel.1 dst 198.18.0.1 self permanent\n"
        );
        let lines: Vec<_> = ip.lines().collect();
        assert_eq!(
            lines,
            [
                "neigh replace 10.1.1.0 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent",
                "nexthop replace id 1 via 10.1.1.0 dev flannel.1 onlink proto 241",
                "route replace 10.1.1.0/24 nhid 1 proto 241",
            ]
        );
        let (ip, _) = captured.batch(&captured.with_plain_routes());
        let last = "route replace 10.1.1.0/24 via 10.1.1.0 dev flannel.1 onlink proto 241";
        assert_eq!((ip.lines().count(), ip.lines().last()), (2, Some(last)));
    }
}
