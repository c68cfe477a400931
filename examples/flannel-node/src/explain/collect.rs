//! Reads the store, the kernel and the files of this host. Writes nothing.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use flannel_netlink::{
    Connection, Namespace,
    iface::lookup_route,
    list_addresses, list_forwarding, list_links, list_neighbours, list_nexthops, list_routes,
    state::{AddressFilter, IpFamily, Link, Route},
};
use flannel_store::{Registry, network_config};

use super::{
    ExplainArgs,
    answers::{OF_A_HOST, OF_A_POD, PORT, ask},
    facts::{Answers, Facts, Hop, Host, Stored, Tunnel},
    walk::Broken,
};
use crate::{operate, subnet_file};

/// Collects what there is. The inner error says that the store is what is broken.
pub(crate) async fn collect(args: &ExplainArgs) -> Result<Result<Facts, Broken>> {
    let stored = match stored(args).await {
        Ok(stored) => stored,
        Err(error) => {
            return Ok(Err(Broken {
                link: "store",
                says: format!("{error:#}"),
                remedy: "give the options with which flannel-node is started on this host".into(),
            }));
        }
    };
    let (source, destination) = (args.source, args.destination);
    let mut host = Host {
        subnet_file: args.subnet_file.clone(),
        env: subnet_file::read(&args.subnet_file),
        ..Host::default()
    };
    let namespace = Namespace::current().context("cannot open our own network namespace")?;
    let connection = &mut Connection::open(&namespace)?;
    let ways_to: Vec<_> =
        [source, destination].into_iter().chain(public(&stored, &host, args)).collect();
    read_kernel(connection, &mut host, &ways_to).await?;
    read_neighbours(connection, &stored, &mut host, args).await?;
    host.settings = settings(&host);
    Ok(Ok(Facts { source, destination, stored, host, answers: None }))
}

/// Asks the other side, which takes up to some seconds, and sees whether the kernel found its neighbours by that.
pub(crate) async fn ask_peer(facts: &mut Facts, args: &ExplainArgs) -> Result<()> {
    facts.answers = Some(answers(&facts.stored, &facts.host, args).await);
    let namespace = Namespace::current().context("cannot open our own network namespace")?;
    let connection = &mut Connection::open(&namespace)?;
    read_neighbours(connection, &facts.stored, &mut facts.host, args).await
}

async fn stored(args: &ExplainArgs) -> Result<Stored> {
    let registry: Box<dyn Registry> = operate::open(&args.store).await?;
    let place = registry.config().await?.place;
    let config = network_config(registry.as_ref()).await?;
    let records = registry.list().await?.records;
    Ok(Stored { place, config, records })
}

/// The two ends, ours first: `None` if neither or both are in this host's subnet.
fn ends(host: &Host, args: &ExplainArgs) -> Option<(IpAddr, IpAddr)> {
    let block = host.block(args.source.is_ipv4())?;
    match (block.contains(args.source), block.contains(args.destination)) {
        (true, false) => Some((args.source, args.destination)),
        (false, true) => Some((args.destination, args.source)),
        _ => None,
    }
}

fn public(stored: &Stored, host: &Host, args: &ExplainArgs) -> Option<IpAddr> {
    let (_, far) = ends(host, args)?;
    stored.public(far)
}

async fn read_kernel(
    connection: &mut Connection,
    host: &mut Host,
    ways_to: &[IpAddr],
) -> Result<()> {
    host.links = list_links(connection).await.context("cannot list devices")?;
    host.addresses = list_addresses(connection, AddressFilter::default())
        .await
        .context("cannot list addresses")?;
    host.nexthops = list_nexthops(connection).await.context("cannot list nexthop objects")?;
    if let Some(first) = ways_to.first() {
        host.routes = list_routes(connection, Route::MAIN, IpFamily::of(first))
            .await
            .context("cannot list routes")?;
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
    args: &ExplainArgs,
) -> Result<()> {
    let tunnel = Tunnel::of(&stored.config, args.source.is_ipv4());
    let tunnel = tunnel.and_then(|tunnel| Some(host.device_named(&tunnel.device)?.index));
    let uplink =
        public(stored, host, args).and_then(|public| host.hops.get(&public)?.as_ref().ok());
    let uplink = uplink.map(|hop| hop.link).filter(|link| Some(*link) != tunnel);
    host.neighbours.clear();
    for link in tunnel.into_iter().chain(uplink) {
        host.neighbours
            .extend(list_neighbours(connection, link).await.context("cannot list neighbours")?);
    }
    if let Some(link) = tunnel {
        host.forwarding =
            list_forwarding(connection, link).await.context("cannot list forwarding entries")?;
    }
    Ok(())
}

/// Asks all at the same time, because the one that does not answer takes its time.
async fn answers(stored: &Stored, host: &Host, args: &ExplainArgs) -> Answers {
    let Some((_, far)) = ends(host, args) else { return Answers::default() };
    let (Some(public), Some((_, block))) = (stored.public(far), stored.record_with(far)) else {
        return Answers::default();
    };
    let is_ipv4 = far.is_ipv4();
    let own = host.block(is_ipv4).and_then(|block| host.address_in(block));
    let tunnel = Tunnel::of(&stored.config, is_ipv4);
    let is_direct = tunnel.as_ref().is_none_or(|tunnel| tunnel.is_direct(host, public));
    let through = if is_direct { public } else { block.network() };
    let (peer, tunnel_port, network, pod) = tokio::join!(
        ask(None, (public, PORT).into(), OF_A_HOST),
        async {
            let tunnel = tunnel.filter(|_| !is_direct)?;
            Some(ask(None, (public, tunnel.port).into(), OF_A_HOST).await)
        },
        async { Some(ask(Some(own?), (through, PORT).into(), OF_A_HOST).await) },
        ask(own, (far, PORT).into(), OF_A_POD),
    );
    Answers { peer: Some(peer), tunnel_port, network, pod: Some(pod) }
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
