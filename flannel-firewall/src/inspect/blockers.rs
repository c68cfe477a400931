//! The packets that a network lives by, and who drops them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_netlink::{
    Connection, KernelError, Namespace, list_links, list_routes,
    state::{IpFamily, Route, RouteKind},
};
use ipnetwork::IpNetwork;

use super::{Direction, Effect, Finding, Flow, PacketPath, inspect_all};
use crate::{
    rules::{Family, Scope},
    warnings::RuleSources,
};

/// The rules and policies that drop packets from pods to peers, from peers to pods, or from pods to the outside, whatever they
/// carry, each as a sentence. `None` if that could not be found out.
pub(crate) async fn find_blockers(
    mut sources: RuleSources<'_>,
    scope: &Scope,
) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let Some(blocks) = scope.blocks(family) else { continue };
        // Without devices, what depends on them is not certain, and the rest is.
        let devices = Devices::find(sources.namespace, family, blocks).await.unwrap_or_default();
        let traffic = traffic(blocks, &devices);
        let paths: Vec<_> = traffic
            .iter()
            .flat_map(|(_, path)| FLOWS.map(|(_, flow)| path.clone().carrying(flow)))
            .collect();
        let findings = inspect_all(&mut sources, &paths, false).await.ok()?;
        // By what drops packets, of which kind: those from where to where.
        let mut dropped: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for ((direction, _), of_flows) in traffic.iter().zip(findings.chunks(FLOWS.len())) {
            for (kind, finding) in drops(of_flows) {
                dropped.entry((finding, kind)).or_default().insert(*direction);
            }
        }
        found.extend(dropped.into_iter().map(|((finding, kind), directions)| {
            let directions = directions.into_iter().collect::<Vec<_>>().join(" and ");
            let packets = format!("{kind} {directions}");
            format!("{}: accept {} there before that", finding.about(&packets), blocks.0)
        }));
    }
    Some(found)
}

/// What is certainly dropped, with the carried protocol only if it matters.
fn drops(of_flows: &[Vec<Finding>]) -> Vec<(&'static str, Finding)> {
    let drop = |findings: &Vec<Finding>| {
        let mut all = findings.iter();
        all.find(|finding| finding.certain && finding.effect == Effect::Drops).cloned()
    };
    let dropped: Vec<_> = of_flows.iter().map(drop).collect();
    match &dropped[..] {
        [Some(first), rest @ ..] if rest.iter().all(|other| other.as_ref() == Some(first)) => {
            vec![("packets", first.clone())]
        }
        _ => FLOWS.iter().zip(dropped).filter_map(|((kind, _), it)| Some((*kind, it?))).collect(),
    }
}

/// The devices that the network's packets come in and leave on, where there is only one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Devices {
    pods: Option<String>,
    /// Several where peers are reached directly and through a tunnel.
    peers: Vec<String>,
    outside: Option<String>,
}

impl Devices {
    /// Reads them from the routes.
    async fn find(
        namespace: &Namespace,
        family: Family,
        (network, own): (IpNetwork, IpNetwork),
    ) -> Result<Self, KernelError> {
        let open = Connection::open(namespace);
        let Ok(mut connection) = open else { return Ok(Self::default()) };
        let ip_family = IpFamily::of(&network.ip());
        let links = list_links(&mut connection).await?;
        let mut found = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
        for route in list_routes(&mut connection, Route::MAIN, ip_family).await? {
            let within = |block: IpNetwork| {
                block.contains(route.destination.ip())
                    && block.prefix() <= route.destination.prefix()
            };
            let at = match route.destination {
                _ if route.kind != RouteKind::Unicast => continue,
                _ if within(own) => 0,
                _ if within(network) => 1,
                all if all.prefix() == 0 => 2,
                _ => continue,
            };
            found[at].extend(route.link);
        }
        let [pods, peers, outside] = found.map(|indexes| {
            let links = links.iter().filter(|link| indexes.contains(&link.index));
            links.map(|link| link.name.clone()).collect::<Vec<_>>()
        });
        let only = |names: Vec<String>| match &names[..] {
            [name] => Some(name.clone()),
            _ => None,
        };
        tracing::trace!(%family, ?pods, ?peers, ?outside, "devices of the network");
        Ok(Self { pods: only(pods), peers, outside: only(outside) })
    }
}

/// What a network lives by.
fn traffic(
    (network, own): (IpNetwork, IpNetwork),
    devices: &Devices,
) -> Vec<(&'static str, PacketPath)> {
    let somewhere: IpAddr = match network {
        IpNetwork::V4(_) => SOMEWHERE.into(),
        IpNetwork::V6(_) => SOMEWHERE_V6.into(),
    };
    let forwarded =
        |from: IpNetwork, to: IpNetwork| PacketPath::new(Direction::Forwarded, from, to);
    let pods = || devices.pods.clone();
    let mut peers: Vec<_> = devices.peers.iter().take(MOST_DEVICES).cloned().map(Some).collect();
    if peers.is_empty() {
        peers.push(None);
    }
    let mut traffic = Vec::new();
    for device in peers {
        let there = forwarded(own, network).through(pods(), device.clone());
        traffic.push(("from pods to peers", there));
        traffic.push(("from peers to pods", forwarded(network, own).through(device, pods())));
    }
    if let Some(outside) = &devices.outside {
        let there = forwarded(own, somewhere.into()).through(pods(), Some(outside.clone()));
        traffic.push(("from pods to the outside", there));
    }
    traffic
}

/// An address of the Internet that no rule is about by itself: what is known of all of them is too little, where some are accepted.
const SOMEWHERE: [u8; 4] = [45, 83, 91, 7];
const SOMEWHERE_V6: [u16; 8] = [0x2a01, 0x4f7, 3, 0, 0, 0, 0, 7];
/// Ports that no rule is about by itself.
const FLOWS: [(&str, Flow); 2] = [
    ("TCP packets", Flow { protocol: 6, source_port: 40_961, destination_port: 15_873 }),
    ("UDP packets", Flow { protocol: 17, source_port: 40_961, destination_port: 15_873 }),
];
/// To how many devices that lead to peers packets are followed.
const MOST_DEVICES: usize = 4;
