//! What can go wrong on a host, and how it is done to the first host of a cluster.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use flannel_netlink::{
    Connection, KernelError, LinkChange, alter_link, delete_link, link_by_name, list_addresses,
    list_forwarding, list_links, list_neighbours, list_nexthops, list_routes,
    state::{
        Address, AddressFilter, ForwardingEntry, IpFamily, Link, LinkKind, MacAddress, Neighbour,
        Nexthop, Object, Route, Via,
    },
};
use flannel_testbed::Meddler;
use futures::future::{BoxFuture, FutureExt as _};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{cluster::Cluster, exact::Renamed};
use crate::{args::Recover, captured::UPLINK, network::kind};

/// One kind of fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

/// How a fault comes about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// The network's configuration gets another backend, both nodes start again, and all of that once more with the first one.
    /// `None` if a backend has no such change.
    Change(fn(&str) -> Option<Value>),
    /// Somebody does it again and again.
    Meddler(for<'a> fn(&'a Cluster) -> BoxFuture<'a, Result<Option<Meddled>>>),
    /// It is done, and perhaps undone by the same.
    Once(for<'a> fn(&'a Cluster) -> BoxFuture<'a, Result<Option<Injected>>>),
    /// The node ends and is started again.
    Restart(Signals),
}

/// How a node is ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Signals {
    /// SIGKILL and SIGTERM, many times.
    InTurns,
    Kill,
    Terminate,
}

/// A fault that is there.
#[derive(Debug, Default)]
pub(super) struct Injected {
    /// The link itself was down, which no node can help, so lost packets say nothing.
    pub(super) was_down: bool,
    /// The state is exact again with this address in the place of the other.
    pub(super) renamed: Option<Renamed>,
    /// Somebody else's address, which a node need not remove.
    pub(super) foreign: Option<IpAddr>,
}

/// Somebody who meddles.
#[derive(Debug)]
pub(super) struct Meddled {
    pub(super) meddler: Meddler,
    /// How many notifications each of his deeds causes.
    pub(super) notices: u64,
}

impl Fault {
    /// The faults that were asked for. Those that a backend has no object for leave no row.
    pub(super) fn all(options: &Recover) -> Vec<Self> {
        let asked = |name: &str| {
            options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()))
        };
        let faults = FAULTS.iter().map(|(name, kind)| Self { name, kind: *kind });
        faults.filter(|fault| asked(fault.name)).collect()
    }
}

/// In the order of the table.
const FAULTS: [(&str, Kind); 25] = [
    ("route deleted", Kind::Once(|it| delete_route(it).boxed())),
    ("route to a wrong gateway", Kind::Once(|it| wrong_gateway(it).boxed())),
    ("nexthop to a wrong gateway", Kind::Once(|it| wrong_nexthop(it).boxed())),
    ("nexthop deleted", Kind::Once(|it| delete_nexthop(it).boxed())),
    ("neighbour with a wrong MAC", Kind::Once(|it| wrong_neighbour(it).boxed())),
    ("neighbour deleted", Kind::Once(|it| delete_neighbour(it).boxed())),
    ("forwarding entry to a wrong host", Kind::Once(|it| wrong_forwarding(it).boxed())),
    ("forwarding entry deleted", Kind::Once(|it| delete_forwarding(it).boxed())),
    ("device deleted", Kind::Once(|it| delete_device(it).boxed())),
    ("device down", Kind::Once(|it| device_down(it).boxed())),
    ("device down and up", Kind::Once(|it| device_down_and_up(it).boxed())),
    ("device MAC changed", Kind::Once(|it| device_mac(it).boxed())),
    ("device address deleted", Kind::Once(|it| device_address(it).boxed())),
    ("device address replaced", Kind::Once(|it| other_device_address(it).boxed())),
    ("link down and up", Kind::Once(|it| link_flap(it).boxed())),
    ("cable out and in", Kind::Once(|it| cable(it).boxed())),
    ("NIC deleted and re-created", Kind::Once(|it| nic(it).boxed())),
    ("address changed", Kind::Once(|it| other_address(it).boxed())),
    ("MAC changed every 100 ms", Kind::Meddler(|it| meddle_mac(it).boxed())),
    ("route deleted every 100 ms", Kind::Meddler(|it| meddle_route(it).boxed())),
    ("backend changed and back", Kind::Change(other_backend)),
    ("VNI changed and back", Kind::Change(other_vni)),
    ("SIGKILL and restart", Kind::Restart(Signals::Kill)),
    ("SIGTERM and restart", Kind::Restart(Signals::Terminate)),
    ("restarts, SIGKILL and SIGTERM in turns", Kind::Restart(Signals::InTurns)),
];

async fn delete_route(cluster: &Cluster) -> Result<Option<Injected>> {
    let deleted = cluster.host().delete_route(cluster.peer).await?;
    ensure!(deleted > 0, "there was no route to {}", cluster.peer);
    Ok(Some(Injected::default()))
}

/// Somebody else's route in the place of the node's, through an address that nobody has.
async fn wrong_gateway(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let uplink = uplink(&mut connection).await?;
    let route = Route::new(peer(cluster)?, STATIC).via_gateway(NOBODY.into(), uplink.index);
    connection.apply_one(route.replace()).await?;
    Ok(Some(Injected::default()))
}

async fn delete_nexthop(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let found = nexthop(cluster, &mut connection).await?;
    delete(&mut connection, found.map(Object::Nexthop)).await
}

async fn wrong_nexthop(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let found = nexthop(cluster, &mut connection).await?;
    let wrong = found.map(|it| Object::Nexthop(Nexthop { gateway: NOBODY.into(), ..it }));
    replace(&mut connection, wrong).await
}

async fn delete_neighbour(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let found = neighbour(&mut connection).await?;
    delete(&mut connection, found.map(Object::Neighbour)).await
}

async fn wrong_neighbour(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let found = neighbour(&mut connection).await?;
    let wrong = found.map(|it| Object::Neighbour(Neighbour { mac: Some(MEDDLED), ..it }));
    replace(&mut connection, wrong).await
}

async fn delete_forwarding(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let found = forwarding(&mut connection).await?;
    delete(&mut connection, found.map(Object::ForwardingEntry)).await
}

async fn wrong_forwarding(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let found = forwarding(&mut connection).await?;
    let wrong = found
        .map(|it| Object::ForwardingEntry(ForwardingEntry { remote: Some(NOBODY.into()), ..it }));
    replace(&mut connection, wrong).await
}

async fn delete_device(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let Some(device) = device(&mut connection).await? else { return Ok(None) };
    delete_link(&mut connection, device.index).await?;
    Ok(Some(Injected::default()))
}

async fn device_down(cluster: &Cluster) -> Result<Option<Injected>> {
    alter(cluster, LinkChange { up: Some(false), ..LinkChange::default() }).await
}

/// Takes with it all routes through the device.
async fn device_down_and_up(cluster: &Cluster) -> Result<Option<Injected>> {
    let down = alter(cluster, LinkChange { up: Some(false), ..LinkChange::default() }).await?;
    if down.is_none() {
        return Ok(None);
    }
    alter(cluster, LinkChange { up: Some(true), ..LinkChange::default() }).await
}

async fn device_mac(cluster: &Cluster) -> Result<Option<Injected>> {
    alter(cluster, LinkChange { mac: Some(MEDDLED), ..LinkChange::default() }).await
}

async fn device_address(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let found = address_of_device(&mut connection).await?;
    delete(&mut connection, found.map(Object::Address)).await
}

async fn other_device_address(cluster: &Cluster) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let Some(ours) = address_of_device(&mut connection).await? else { return Ok(None) };
    let other = Address::new(ours.link, IpAddr::from(NOBODY).into());
    replace(&mut connection, Some(Object::Address(other))).await?;
    delete(&mut connection, Some(Object::Address(ours))).await?;
    Ok(Some(Injected { foreign: Some(NOBODY.into()), ..Injected::default() }))
}

async fn link_flap(cluster: &Cluster) -> Result<Option<Injected>> {
    cluster.host().link_down().await?;
    sleep(DOWN).await;
    cluster.host().link_up().await?;
    Ok(Some(Injected { was_down: true, ..Injected::default() }))
}

async fn cable(cluster: &Cluster) -> Result<Option<Injected>> {
    cluster.host().unplug().await?;
    sleep(DOWN).await;
    cluster.host().plug().await?;
    Ok(Some(Injected { was_down: true, ..Injected::default() }))
}

async fn nic(cluster: &Cluster) -> Result<Option<Injected>> {
    cluster.host().delete_uplink().await?;
    sleep(DOWN).await;
    cluster.host().create_uplink().await?;
    Ok(Some(Injected { was_down: true, ..Injected::default() }))
}

async fn other_address(cluster: &Cluster) -> Result<Option<Injected>> {
    let host = cluster.host();
    let before = host.addresses();
    let [IpNetwork::V4(old)] = before[..] else { return Ok(None) };
    let new = IpNetwork::new(IpAddr::from(NEW_ADDRESS), old.prefix())?;
    host.set_addresses([new]).await?;
    let renamed = Renamed { from: old.ip().to_string(), to: NEW_ADDRESS.to_string() };
    Ok(Some(Injected { renamed: Some(renamed), ..Injected::default() }))
}

async fn meddle_mac(cluster: &Cluster) -> Result<Option<Meddled>> {
    let host = cluster.host();
    let Some(device) = device(&mut host.connect()?).await? else { return Ok(None) };
    let meddler = host.meddle(EVERY, move |connection| {
        let change = LinkChange { mac: Some(MEDDLED), ..LinkChange::default() };
        let name = device.name.clone();
        async move {
            let found = link_by_name(connection, &name).await?;
            let index = found.map_or(0, |device| device.index);
            alter_link(connection, index, &change).await
        }
        .boxed()
    })?;
    Ok(Some(Meddled { meddler, notices: 1 }))
}

async fn meddle_route(cluster: &Cluster) -> Result<Option<Meddled>> {
    let peer = peer(cluster)?;
    let meddler =
        cluster.host().meddle(EVERY, move |connection| delete_first(connection, peer).boxed())?;
    Ok(Some(Meddled { meddler, notices: 1 }))
}

async fn delete_first(connection: &mut Connection, peer: IpNetwork) -> Result<(), KernelError> {
    let routes = list_routes(connection, Route::MAIN, IpFamily::V4).await?;
    match routes.iter().find(|route| route.destination == peer) {
        Some(route) => connection.apply_one(route.delete()).await,
        // The same error as for a route that goes meanwhile, so that it does not count as a deed.
        None => connection.apply_one(Route::new(peer, STATIC).delete()).await,
    }
}

async fn alter(cluster: &Cluster, change: LinkChange) -> Result<Option<Injected>> {
    let mut connection = cluster.host().connect()?;
    let Some(device) = device(&mut connection).await? else { return Ok(None) };
    alter_link(&mut connection, device.index, &change).await?;
    Ok(Some(Injected::default()))
}

async fn delete(connection: &mut Connection, object: Option<Object>) -> Result<Option<Injected>> {
    let Some(object) = object else { return Ok(None) };
    let deleted = connection.apply_one(object.delete()).await;
    deleted.with_context(|| format!("cannot delete {object}"))?;
    Ok(Some(Injected::default()))
}

async fn replace(connection: &mut Connection, object: Option<Object>) -> Result<Option<Injected>> {
    let Some(object) = object else { return Ok(None) };
    let replaced = connection.apply_one(object.replace()).await;
    replaced.with_context(|| format!("cannot write {object}"))?;
    Ok(Some(Injected::default()))
}

fn other_backend(backend: &str) -> Option<Value> {
    match kind(backend).as_str() {
        "host-gw" => Some(json!({ "Type": "vxlan" })),
        "vxlan" => Some(json!({ "Type": "host-gw" })),
        _ => None,
    }
}

fn other_vni(backend: &str) -> Option<Value> {
    (kind(backend) == "vxlan").then(|| json!({ "Type": "vxlan", "VNI": 7 }))
}

/// The nexthop object of the route to the peer, if it has one.
async fn nexthop(cluster: &Cluster, connection: &mut Connection) -> Result<Option<Nexthop>> {
    let routes = list_routes(connection, Route::MAIN, IpFamily::V4).await?;
    let peer = peer(cluster)?;
    let route = routes.iter().find(|route| route.destination == peer);
    let nexthops = list_nexthops(connection).await?;
    let used = |it: &Nexthop| route.is_some_and(|route| route.via == Via::Nexthop(it.id));
    Ok(nexthops.into_iter().find(used))
}

/// A neighbour that the node wrote.
async fn neighbour(connection: &mut Connection) -> Result<Option<Neighbour>> {
    let Some(device) = device(connection).await? else { return Ok(None) };
    let neighbours = list_neighbours(connection, device.index).await?;
    Ok(neighbours.into_iter().find(|it| it.permanent))
}

/// A forwarding entry that the node wrote.
async fn forwarding(connection: &mut Connection) -> Result<Option<ForwardingEntry>> {
    let Some(device) = device(connection).await? else { return Ok(None) };
    let entries = list_forwarding(connection, device.index).await?;
    Ok(entries.into_iter().find(|it| it.permanent && it.remote.is_some()))
}

/// The address of the node's device.
async fn address_of_device(connection: &mut Connection) -> Result<Option<Address>> {
    let Some(device) = device(connection).await? else { return Ok(None) };
    let filter = AddressFilter { link: Some(device.index) };
    let addresses = list_addresses(connection, filter).await?;
    Ok(addresses.into_iter().find(|it| it.address.is_ipv4()))
}

/// The device that the node made, if its backend has one.
pub(super) async fn device(connection: &mut Connection) -> Result<Option<Link>> {
    let links = list_links(connection).await?;
    Ok(links.into_iter().find(|link| matches!(link.kind, LinkKind::Vxlan(_))))
}

pub(super) async fn uplink(connection: &mut Connection) -> Result<Link> {
    link_by_name(connection, UPLINK).await?.context("the host has no uplink")
}

pub(super) fn peer(cluster: &Cluster) -> Result<IpNetwork> {
    Ok(cluster.peer.ipv4().context("the peer has an IPv4 subnet")?.into())
}

/// A node that looks every now and then is not spared.
const DOWN: Duration = Duration::from_millis(500);
const EVERY: Duration = Duration::from_millis(100);
/// In the underlay, and nobody's.
const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 3);
const NEW_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 4, 4);
const MEDDLED: MacAddress = MacAddress::new([0x02, 0xba, 0xd0, 0xba, 0xd0, 0x01]);
/// Routes made by an administrator, linux/rtnetlink.h.
const STATIC: u8 = 4;
