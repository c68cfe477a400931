//! Reads the store, the kernel and the files of this host. Writes nothing.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use flannel_backend_udp::uses_ebpf;
use flannel_backend_wireguard::{NAMES, outer_flow};
use flannel_core::{Family, Lease, LeaseEvent, Store};
use flannel_firewall::{Direction, Flow, PacketPath, inspect};
use flannel_netlink::{
    Connection, KernelError, Namespace,
    iface::lookup_route,
    list_addresses, list_forwarding, list_links, list_neighbours, list_nexthops, list_routes,
    state::{AddressFilter, IpFamily, Link, Route},
};
use flannel_store::{Lifetime, Record, Registry, network_config};
use futures::StreamExt;

use super::{
    ExplainError, ExplainOptions, LeaseSource,
    ask::{OF_A_POD, PORT, Question},
    facts::{Answers, Facts, Hop, Host, InTheWay, Running, Stored, Tunnel},
    walk::Broken,
};
use crate::{
    DaemonHandle, OpenStore, StoreRequest, Stores, error::chain, status, status_socket, subnet_file,
};

/// Collects what there is. The inner error says that the store is what is broken.
pub(crate) async fn collect(
    options: &ExplainOptions,
    stores: &Stores,
) -> Result<Result<Facts, Broken>, ExplainError> {
    let stored = match stored(options, stores).await {
        Ok(stored) => stored,
        Err(error) => {
            return Ok(Err(Broken {
                link: "store".into(),
                says: chain(&*error),
                remedy: "give the options with which flannel-node is started on this host".into(),
            }));
        }
    };
    let (source, destination) = (options.source, options.destination);
    let mut host = Host {
        subnet_file: options.subnet_file.clone(),
        env: subnet_file::read(&options.subnet_file),
        ..Host::default()
    };
    let namespace = options.namespace()?;
    let connection = &mut Connection::open(&namespace)?;
    let public_of_peer = public(&stored, &host, options);
    let outer = ends(&host, options).and_then(|(near, far)| encapsulated(&stored, near, far));
    let ways_to: Vec<_> = [source, destination]
        .into_iter()
        .chain(public_of_peer)
        .chain(outer.map(|(_, peer)| peer.ip()))
        .collect();
    read_kernel(connection, &mut host, &ways_to).await?;
    read_neighbours(connection, &stored, &mut host, options).await?;
    host.settings = settings(&host);
    let node = match &options.leases {
        LeaseSource::Node(daemon) => Some(daemon.status_document().await),
        LeaseSource::Store(_) => status::ask(&status_socket::beside(&options.subnet_file)).ok(),
    };
    let node = node.and_then(|status| {
        let refused = status.refused.iter().map(|it| (it.peer.to_string(), it.fault.to_string()));
        let refused = refused.collect();
        Some(Running { refused, ..Running::read(&serde_json::to_value(&status).ok()?) })
    });
    let findings = findings(&namespace, &stored, &host, options).await;
    Ok(Ok(Facts { source, destination, stored, host, findings, node, answers: None }))
}

/// Asks the other side, which takes up to some seconds, and sees whether the kernel found its neighbours by that.
pub(crate) async fn ask_peer(
    facts: &mut Facts,
    options: &ExplainOptions,
) -> Result<(), ExplainError> {
    facts.answers = Some(answers(&facts.stored, &facts.host, options).await);
    let namespace = options.namespace()?;
    let connection = &mut Connection::open(&namespace)?;
    read_neighbours(connection, &facts.stored, &mut facts.host, options).await
}

/// What of the rules is in the way, there and back, of the packets themselves and of what they are encapsulated in.
async fn findings(
    namespace: &Namespace,
    stored: &Stored,
    host: &Host,
    options: &ExplainOptions,
) -> Result<Vec<InTheWay>, String> {
    let device = |address: IpAddr| {
        let hop = host.hops.get(&address)?.as_ref().ok()?;
        Some(host.device(hop.link)?.name.clone())
    };
    let Some((near, far)) = ends(host, options) else { return Ok(Vec::new()) };
    let mut paths = Vec::new();
    for (from, to) in [(near, far), (far, near)] {
        let path = PacketPath::new(Direction::Forwarded, from, to);
        paths.push((from, to, None, path.through(device(from), device(to))));
    }
    if let Some((own, peer)) = encapsulated(stored, near, far) {
        let flow = |from: SocketAddr, to: SocketAddr| Flow {
            protocol: UDP,
            source_port: from.port(),
            destination_port: to.port(),
        };
        let (here, there) = (own.ip(), peer.ip());
        let sent = PacketPath::new(Direction::Sent, here, there).through(None, device(there));
        paths.push((here, there, Some(peer.port()), sent.carrying(flow(own, peer))));
        let received =
            PacketPath::new(Direction::Received, there, here).through(device(there), None);
        paths.push((there, here, Some(own.port()), received.carrying(flow(peer, own))));
    }
    let mut found = Vec::new();
    for (from, to, port, path) in paths {
        let findings = inspect(namespace, &path, &[]).await;
        let findings = findings.map_err(|error| chain(&error))?;
        found.extend(findings.into_iter().map(|finding| InTheWay { from, to, port, finding }));
    }
    Ok(found)
}

/// Where encapsulated packets come from and go to, ours first, if packets are encapsulated and rules see that.
fn encapsulated(stored: &Stored, near: IpAddr, far: IpAddr) -> Option<(SocketAddr, SocketAddr)> {
    let backend = stored.config.backend();
    let port = match backend.kind() {
        kind if NAMES.contains(&kind) => {
            let family = if near.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
            return outer_flow(&stored.config, &stored.attrs(near)?, &stored.attrs(far)?, family);
        }
        "udp"
            if [near, far].iter().all(|ip| stored.attrs(*ip).is_some_and(|it| uses_ebpf(&it))) =>
        {
            None
        }
        "udp" => {
            let port = backend.options().integer("Port", 0..=u64::from(u16::MAX)).ok().flatten();
            Some(port.and_then(|port| u16::try_from(port).ok()).unwrap_or(UDP_BACKENDS_PORT))
        }
        _ => Tunnel::of(&stored.config, near.is_ipv4()).map(|tunnel| tunnel.port),
    }?;
    Some((SocketAddr::new(stored.public(near)?, port), SocketAddr::new(stored.public(far)?, port)))
}

/// `IPPROTO_UDP`
const UDP: u8 = 17;
/// What the udp backend uses unless told otherwise, as flannel's.
const UDP_BACKENDS_PORT: u16 = 8285;

async fn stored(
    options: &ExplainOptions,
    stores: &Stores,
) -> Result<Stored, Box<dyn Error + Send + Sync>> {
    let store = match &options.leases {
        LeaseSource::Node(daemon) => return of_node(daemon).await,
        LeaseSource::Store(store) => store,
    };
    let request = StoreRequest { options: store, network: None, create: false };
    match stores.plan(&request)?.open().await? {
        OpenStore::Registry(registry) => {
            let place = registry.config().await?.place;
            let config = network_config(registry.as_ref()).await?;
            let records = registry.list().await?.records;
            Ok(Stored { place, config, records })
        }
        OpenStore::Orchestrator(it) => of_store(&*it.store(), store.to_string()).await,
        OpenStore::Store(own, _) => of_store(&*own, store.to_string()).await,
    }
}

/// What a store says that chooses subnets itself.
async fn of_store(
    store: &dyn Store,
    place: String,
) -> Result<Stored, Box<dyn Error + Send + Sync>> {
    let config = store.config().await?;
    match store.watch().next().await.transpose()? {
        Some(LeaseEvent::Reset(leases)) => {
            Ok(Stored { place, config, records: records(leases.iter().map(AsRef::as_ref)) })
        }
        event => {
            Err(format!("the first thing that a store says is all leases, not {event:?}").into())
        }
    }
}

/// What a node that runs knows of its store.
async fn of_node(daemon: &DaemonHandle) -> Result<Stored, Box<dyn Error + Send + Sync>> {
    let nothing = "the node does not know the network and its leases yet";
    let (status, facts) = daemon.status().zip(daemon.facts()).ok_or(nothing)?;
    let config = status.config.ok_or(nothing)?;
    let node = daemon.node().filter(|_| status.peers.is_some()).ok_or(nothing)?;
    let peers = node.peers().await.ok_or("the node has ended")?;
    let own = status.lease.map(|mut lease| {
        lease.node.get_or_insert(facts.id);
        lease
    });
    Ok(Stored { place: facts.store, config, records: records(peers.iter().chain(&own)) })
}

fn records<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> Vec<Record> {
    let record = |lease: &Lease| Record {
        key: lease.subnet.to_string(),
        value: serde_json::to_string(&lease.attrs).map_err(|error| error.to_string()),
        owner: lease.node.clone(),
        revision: 0,
        created: 0,
        lifetime: Lifetime::Bounded,
        token: 0,
    };
    leases.into_iter().map(record).collect()
}

/// The two ends, ours first: `None` if neither or both are in this host's subnet.
fn ends(host: &Host, options: &ExplainOptions) -> Option<(IpAddr, IpAddr)> {
    let block = host.block(options.source.is_ipv4())?;
    match (block.contains(options.source), block.contains(options.destination)) {
        (true, false) => Some((options.source, options.destination)),
        (false, true) => Some((options.destination, options.source)),
        _ => None,
    }
}

fn public(stored: &Stored, host: &Host, options: &ExplainOptions) -> Option<IpAddr> {
    let (_, far) = ends(host, options)?;
    stored.public(far)
}

async fn read_kernel(
    connection: &mut Connection,
    host: &mut Host,
    ways_to: &[IpAddr],
) -> Result<(), ExplainError> {
    host.links = list_links(connection).await.map_err(cannot_list("devices"))?;
    host.addresses = list_addresses(connection, AddressFilter::default())
        .await
        .map_err(cannot_list("addresses"))?;
    host.nexthops = list_nexthops(connection).await.map_err(cannot_list("nexthop objects"))?;
    if let Some(first) = ways_to.first() {
        host.routes = list_routes(connection, Route::MAIN, IpFamily::of(first))
            .await
            .map_err(cannot_list("routes"))?;
    }
    for address in ways_to {
        let hop = match lookup_route(connection, *address).await {
            Ok(reach) => Ok(Hop { link: reach.link, gateway: reach.gateway }),
            Err(error) => Err(error.to_string()),
        };
        host.hops.insert(*address, hop);
    }
    Ok(())
}

async fn read_neighbours(
    connection: &mut Connection,
    stored: &Stored,
    host: &mut Host,
    options: &ExplainOptions,
) -> Result<(), ExplainError> {
    let tunnel = Tunnel::of(&stored.config, options.source.is_ipv4());
    let tunnel = tunnel.and_then(|tunnel| Some(host.device_named(&tunnel.device)?.index));
    let uplink =
        public(stored, host, options).and_then(|public| host.hops.get(&public)?.as_ref().ok());
    let uplink = uplink.map(|hop| hop.link).filter(|link| Some(*link) != tunnel);
    host.neighbours.clear();
    for link in tunnel.into_iter().chain(uplink) {
        host.neighbours
            .extend(list_neighbours(connection, link).await.map_err(cannot_list("neighbours"))?);
    }
    if let Some(link) = tunnel {
        host.forwarding =
            list_forwarding(connection, link).await.map_err(cannot_list("forwarding entries"))?;
    }
    Ok(())
}

fn cannot_list(what: &'static str) -> impl FnOnce(KernelError) -> ExplainError {
    move |source| ExplainError::List { what, source }
}

/// Asks all at the same time, because the one that does not answer takes its time.
async fn answers(stored: &Stored, host: &Host, options: &ExplainOptions) -> Answers {
    let Some((_, far)) = ends(host, options) else { return Answers::default() };
    let (Some(public), Some((_, block))) = (stored.public(far), stored.record_with(far)) else {
        return Answers::default();
    };
    let is_ipv4 = far.is_ipv4();
    let own = host.block(is_ipv4).and_then(|block| host.address_in(block));
    let tunnel = Tunnel::of(&stored.config, is_ipv4);
    let is_direct = tunnel.as_ref().is_none_or(|tunnel| tunnel.is_direct(host, public));
    let through = if is_direct { public } else { block.network() };
    let hop = host.hops.get(&public).and_then(|hop| hop.as_ref().ok());
    let card = hop.and_then(|hop| host.device(hop.link)).map(|device| device.mtu);
    let configured = tunnel.as_ref().and_then(|tunnel| tunnel.mtu);
    let size = card.map(|card| card.min(configured.unwrap_or(card)));
    let of_peer = Question::new((public, PORT).into());
    let (peer, large, tunnel_port, network, pod) = tokio::join!(
        of_peer.ask(),
        async { Some((size?, Question { size, ..of_peer }.ask().await)) },
        async {
            let tunnel = tunnel.filter(|_| !is_direct)?;
            Some(Question::new((public, tunnel.port).into()).ask().await)
        },
        async {
            let from = Some(own?);
            Some(Question { from, ..Question::new((through, PORT).into()) }.ask().await)
        },
        Question { from: own, patience: OF_A_POD, ..Question::new((far, PORT).into()) }.ask(),
    );
    Answers { peer: Some(peer), large, tunnel_port, network, pod: Some(pod) }
}

/// The settings that a walk looks at, as far as this kernel has them.
fn settings(host: &Host) -> BTreeMap<String, String> {
    let general =
        ["net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter", "net/ipv6/conf/all/forwarding"];
    let of_device = |link: &Link| {
        ["net/ipv4/conf/NAME/forwarding", "net/ipv4/conf/NAME/rp_filter"]
            .map(|setting| setting.replace("NAME", &link.name))
    };
    // Where a host has thousands of pods, only the devices that the ways lead through count.
    let counts = |link: &&Link| {
        host.hops.values().flatten().any(|hop| hop.link == link.index)
            || host.addresses.iter().any(|address| address.link == link.index)
    };
    let of_devices = host.links.iter().filter(counts).flat_map(of_device);
    let all = general.map(String::from).into_iter().chain(of_devices);
    all.filter_map(|setting| {
        let value = fs::read_to_string(Path::new("/proc/sys").join(&setting)).ok()?;
        Some((setting, value.trim().to_owned()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_asked_about_the_ports_of_the_backend() {
        let key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
        let lease = |n, kind: &str, port| Record {
            key: format!("10.244.{n}.0-24"),
            value: Ok(format!(
                r#"{{"PublicIP":"192.0.2.{n}","PublicIPv6":null,"BackendType":"{kind}","BackendData":{{"PublicKey":"{key}","Port":{port}}}}}"#
            )),
            owner: None,
            revision: 1,
            created: 1,
            lifetime: Lifetime::Bounded,
            token: 0,
        };
        for (kind, own, peer) in [
            ("vxlan", 8472, Some(8472)),
            ("udp", 8285, Some(8285)),
            ("wireguard", 51820, Some(7)),
            ("host-gw", 0, None),
        ] {
            let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
            let stored = Stored {
                place: String::new(),
                config: config.parse().unwrap(),
                records: vec![lease(1, kind, 51820), lease(2, kind, 7)],
            };
            let [near, far] = [1, 2].map(|n| IpAddr::from([10, 244, n, 9]));
            let expected =
                peer.map(|peer| (([192, 0, 2, 1], own).into(), ([192, 0, 2, 2], peer).into()));
            assert_eq!(encapsulated(&stored, near, far), expected, "{kind}");
        }
    }
}
