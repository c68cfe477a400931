//! Interfaces and addresses that change while a node runs, and addresses that are not the host's.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{process::Command, time::Duration};

use flannel_testbed::{Pod, Testbed, eventually, probe};
use tokio::time::{Instant, sleep};

use super::{
    renumbering,
    support::{Cluster, HOST_GW, VXLAN, program},
};

/// The time until the pods reach each other again, both ways.
async fn recovery(pods: &[Pod]) -> Duration {
    let start = Instant::now();
    eventually(async || probe::reachability(pods).await.complete()).await;
    start.elapsed()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_address_is_published_under_the_same_lease() {
    for network in [HOST_GW, VXLAN] {
        let cluster = Cluster::new(2, network).await;
        let (_nodes, pods) = cluster.start_all().await;
        let subnet = cluster.subnet(0);
        for (address, gap) in [("192.0.2.77/24", 0), ("192.0.2.78/24", 1500)] {
            if gap > 0 {
                // A DHCP client that lost its lease takes the address away and comes back with another one.
                cluster.host(0).link_down().await.unwrap();
                sleep(Duration::from_millis(gap)).await;
            }
            cluster.host(0).set_addresses([address.parse().unwrap()]).await.unwrap();
            if gap > 0 {
                cluster.host(0).link_up().await.unwrap();
            }
            let start = Instant::now();
            let published = address.trim_end_matches("/24");
            eventually(async || cluster.lease(0).contains(published)).await;
            recovery(&pods).await;
            let took = start.elapsed();
            println!("{network}: reached {address} after {took:?}");
            assert!(took < Duration::from_secs(2), "{took:?}");
            assert_eq!(cluster.subnet(0), subnet);
            assert_eq!(cluster.leases(), 2);
        }
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn another_address_costs_200_ms_at_most() {
    for network in [HOST_GW, VXLAN] {
        renumbering::costs_little(network).await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_new_network_card_is_followed_and_a_cable_may_be_pulled() {
    for network in [HOST_GW, VXLAN] {
        let cluster = Cluster::new(2, network).await;
        let (_nodes, pods) = cluster.start_all().await;
        let subnet = cluster.subnet(0);

        cluster.host(0).unplug().await.unwrap();
        sleep(Duration::from_millis(500)).await;
        cluster.host(0).plug().await.unwrap();
        let took = recovery(&pods).await;
        println!("{network}: cable in again, reached after {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");

        cluster.host(0).delete_uplink().await.unwrap();
        sleep(Duration::from_millis(500)).await;
        cluster.host(0).create_uplink().await.unwrap();
        let took = recovery(&pods).await;
        println!("{network}: new card, reached after {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(cluster.subnet(0), subnet);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_address_inside_of_the_network_is_told() {
    let cluster = Cluster::new(2, VXLAN).await;
    let outside = cluster.start(0).await;
    let told = |output: Vec<String>| {
        output.into_iter().find(|line| line.contains("is inside of the network"))
    };
    assert_eq!(told(outside.output()), None);
    cluster.host(1).set_addresses(["10.244.200.2/24".parse().unwrap()]).await.unwrap();
    let line = told(cluster.start(1).await.output()).expect("a line about it");
    let words = "this host's address 10.244.200.2 is inside of the network 10.244.0.0/16";
    assert!(line.contains(words) && line.contains("SubnetMin"), "{line}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_public_address_that_is_not_ours_needs_no_interface() {
    let mut cluster = Cluster::new(1, VXLAN).await;
    cluster.testbed = Testbed::builder(1).default_route().build().await.unwrap();
    let mut command = Command::new(program());
    command.arg(format!("-store={}", cluster.store()));
    command.args(["-network", VXLAN, "-public-ip=203.0.113.5", "-node-id=behind-nat"]);
    command.arg("-subnet-file").arg(cluster.subnet_file(0));
    let _node = cluster.run(0, command).await;
    assert!(cluster.lease(0).contains("\"PublicIP\":\"203.0.113.5\""), "{}", cluster.lease(0));
    // It is not put on any device, and the tunnel leaves from the address that the host has.
    let snapshot = cluster.host(0).snapshot().await.unwrap().to_string();
    assert!(!snapshot.contains("203.0.113.5") && snapshot.contains("flannel.1"), "{snapshot}");
    // The address changes behind the translation, which is no news for peers.
    cluster.host(0).set_addresses(["192.0.2.66/24".parse().unwrap()]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(cluster.lease(0).contains("203.0.113.5"));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_second_node_of_one_network_on_one_host_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let command = |name: &str| {
        let mut command = cluster.command(program(), 0);
        command.arg(format!("-node-id={name}"));
        command
    };
    let mut first = cluster.run(0, command("a")).await;
    let subnet = cluster.subnet(0);
    for name in ["a", "b"] {
        let mut second = cluster.host(0).spawn(command(name)).unwrap();
        assert_eq!(second.wait().await.unwrap().code(), Some(1));
        let said = second.output().join("\n");
        assert!(
            said.contains("another node of this network") && said.contains("stop it"),
            "{said}"
        );
    }
    assert_eq!(cluster.leases(), 1);
    first.kill().unwrap();
    first.wait().await.unwrap();
    let _again = cluster.run(0, command("a")).await;
    assert_eq!(cluster.subnet(0), subnet);
}
