//! Ways to peers that take less than the uplink.
#![expect(clippy::disallowed_methods, reason = "ip shows the routes")]

use std::{process::Command, time::Duration};

use flannel_backend::{PathFacts, Paths};
use flannel_testbed::probe::Ping;

use crate::lab::{IPV4, Lab};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_route_to_a_peer_behind_a_small_link_says_so() {
    let mut lab = Lab::new(&[IPV4; 2]).await;
    let paths = Paths::default();
    lab.restart_with(0, paths.clone()).await;
    let far = lab.testbed.host(1).clone();
    far.set_path_mtu(1300).await.unwrap();
    assert_eq!(mtu(&lab).await, None);

    let mut facts = PathFacts::default();
    facts.mtus.insert(far.ip(), 1300);
    paths.set(facts);
    lab.nodes[0].network.drifted().await.unwrap();
    lab.sync(0).await;
    // Without 80 bytes, which are the outer headers of IPv6 and those of WireGuard.
    assert_eq!(mtu(&lab).await.as_deref(), Some("1220"));
    assert_eq!(lab.sync(0).await.writes(), 0);
    let exact = Ping::default().size(1220).unfragmented().timeout(Duration::from_secs(2));
    lab.pods[0].ping_with(lab.pods[1].ip(), exact).await.unwrap();

    paths.set(PathFacts::default());
    lab.nodes[0].network.drifted().await.unwrap();
    lab.sync(0).await;
    assert_eq!(mtu(&lab).await, None);
}

/// That of the route to the other host's pods.
async fn mtu(lab: &Lab) -> Option<String> {
    let mut ip = Command::new("ip");
    ip.args(["route", "show", &lab.leases[1].subnet.ipv4().unwrap().to_string()]);
    let routes = lab.testbed.host(0).run(ip).await.unwrap();
    let mut words = routes.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(Into::into)
}
