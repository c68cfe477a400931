//! Steps for nodes that drop packets to addresses of their own subnet that no pod has.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{net::Ipv4Addr, process::Command};

use flannel_netlink::{
    iface::lookup_route,
    list_routes,
    state::{IpFamily, Route, RouteKind},
};
use flannel_testbed::{Process, eventually};

use super::support::{Cluster, program};

/// The routes of the first host that drop packets.
async fn blackholes(cluster: &Cluster) -> Vec<Route> {
    let mut host = cluster.host(0).connect().unwrap();
    let mut routes = list_routes(&mut host, Route::MAIN, IpFamily::V4).await.unwrap();
    routes.retain(|route| route.kind == RouteKind::Blackhole);
    routes
}

async fn node(cluster: &Cluster, args: &[&str]) -> Process {
    let mut command = cluster.command(program(), 0);
    command.args(args);
    cluster.run(0, command).await
}

async fn end(mut node: Process) {
    node.terminate().unwrap();
    node.wait().await.unwrap();
}

/// What no pod has is dropped if asked, what pods have is not, and the route that does it goes when nobody asks any more.
pub(crate) async fn comes_if_asked_and_goes(network: &'static str) {
    let cluster = Cluster::new(1, network).await;
    let plain = node(&cluster, &[]).await;
    assert_eq!(blackholes(&cluster).await, []);
    end(plain).await;

    let dropping = node(&cluster, &["-ip-blackhole-route"]).await;
    let block = cluster.subnet(0).ipv4().unwrap();
    let found = blackholes(&cluster).await;
    assert_eq!(found.iter().map(|it| it.destination).collect::<Vec<_>>(), [block.into()]);
    let mut host = cluster.host(0).connect().unwrap();
    let unused = Ipv4Addr::from(u32::from(block.network()) + 77);
    let error = lookup_route(&mut host, unused.into()).await.unwrap_err();
    assert!(error.to_string().contains("Invalid argument"), "{error}");

    host.apply_one(found[0].delete()).await.unwrap();
    eventually(async || blackholes(&cluster).await == found).await;
    // The bridge of pods has the same block, and goes before it.
    let pod = cluster.host(0).add_pod(cluster.subnet(0)).await.unwrap();
    assert_eq!(blackholes(&cluster).await, found);
    lookup_route(&mut host, pod.ip()).await.unwrap();
    end(dropping).await;
    assert_eq!(blackholes(&cluster).await, found, "it stays with the data path");

    let plain = node(&cluster, &[]).await;
    eventually(async || blackholes(&cluster).await.is_empty()).await;
    end(plain).await;
    end(node(&cluster, &["-ip-blackhole-route"]).await).await;
    assert_eq!(blackholes(&cluster).await, found);
    let mut teardown = Command::new(program());
    teardown.arg("teardown").args(["--store", &cluster.store()]);
    teardown.arg("--subnet-file").arg(cluster.subnet_file(0));
    let mut teardown = cluster.host(0).spawn(teardown).unwrap();
    assert!(teardown.wait().await.unwrap().success(), "{:?}", teardown.output());
    assert_eq!(blackholes(&cluster).await, []);
}
