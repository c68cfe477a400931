//! Routes that refuse what no tunnel takes.

use std::net::IpAddr;

use flannel_backend::{PROTOCOL, PeerPlan, TableOptions, ensure_guards, remove_all};
use flannel_core::{Lease, LeaseAttrs, NetworkConfig, Peers};
use flannel_netlink::{
    iface::lookup_route,
    list_routes,
    state::{IpFamily, Route, RouteKind},
};
use flannel_testbed::{Blocks, Host, Testbed};

use super::DUAL;

/// The routes of a host that refuse packets, by the protocol of who made them.
async fn guards(host: &Host) -> Vec<u8> {
    let mut found = Vec::new();
    for family in IpFamily::ALL {
        let mut connection = host.connect().unwrap();
        let mut routes = list_routes(&mut connection, Route::MAIN, family).await.unwrap();
        routes.retain(|route| route.kind == RouteKind::Unreachable);
        found.extend(routes.iter().map(|route| route.protocol));
    }
    found
}

/// Whether packets to a peer's pods have no way out, of either family.
async fn refuses(host: &Host) -> bool {
    let pods: [IpAddr; 2] = ["10.244.9.9", "fd00:10:244:9::9"].map(|ip| ip.parse().unwrap());
    let mut refused = Vec::new();
    for pod in pods {
        refused.push(lookup_route(&mut host.connect().unwrap(), pod).await.is_err());
    }
    assert_eq!(refused[0], refused[1]);
    refused[0]
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_no_tunnel_takes_is_refused_from_the_first_moment_and_after_the_end() {
    let testbed = Testbed::new(2).await.unwrap();
    let (host, peer) = (testbed.host(0), testbed.host(1));
    let everywhere: Blocks = "0.0.0.0/0,::/0".parse().unwrap();
    host.add_route(everywhere, peer).await.unwrap();
    assert!(!refuses(host).await);
    let config: NetworkConfig = DUAL.parse().unwrap();
    let options = TableOptions { guards: true, ..TableOptions::new(&config) };
    let (namespace, networks) = (host.namespace(), &options.networks);
    ensure_guards(namespace, networks, PROTOCOL, Route::MAIN).await.unwrap();
    assert!(refuses(host).await);
    let mut table = options.open(namespace, Vec::new()).await.unwrap();
    let own =
        Lease::new("10.244.1.0-24&fd00:10:244:1::-64".parse().unwrap(), LeaseAttrs::default());
    let peers = Peers::new(config.clone(), own);
    let report = table.sync(&peers, |_| PeerPlan::default()).await.unwrap();
    assert_eq!((report.writes(), report.read >= 2), (0, true), "{report:?}");
    assert_eq!(guards(host).await, [PROTOCOL; 2]);
    table.teardown().await.unwrap();
    assert_eq!(guards(host).await, [PROTOCOL; 2], "for the next backend of the node");
    assert!(refuses(host).await);

    // The next start takes them back.
    ensure_guards(namespace, networks, PROTOCOL, Route::MAIN).await.unwrap();
    assert_eq!(guards(host).await, [PROTOCOL; 2]);
    remove_all(namespace, networks, true).await.unwrap();
    assert_eq!(guards(host).await, [Route::BOOT; 2]);
    ensure_guards(namespace, networks, PROTOCOL, Route::MAIN).await.unwrap();
    remove_all(namespace, networks, false).await.unwrap();
    assert!(guards(host).await.is_empty());
    assert!(!refuses(host).await);
}
