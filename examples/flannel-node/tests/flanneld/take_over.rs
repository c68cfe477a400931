//! One takes the host over from the other, without loss.

use flannel_testbed::{Flanneld, Process, probe, soon};

use super::support::{Cluster, dual, ipv4};

#[derive(Clone, Copy)]
enum End {
    Kill,
    Terminate,
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn a_terminated_flanneld_is_followed_without_loss_by_vxlan() {
    take_over(&ipv4("vxlan"), End::Terminate, &[]).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn a_killed_flanneld_is_followed_without_loss_by_dual_stack_vxlan() {
    take_over(&dual("vxlan"), End::Kill, &[]).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn a_killed_flanneld_is_followed_without_loss_by_host_gw() {
    take_over(&ipv4("host-gw"), End::Kill, &[]).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn a_terminated_flanneld_is_followed_without_loss_by_dual_stack_host_gw() {
    take_over(&dual("host-gw"), End::Terminate, &[]).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn an_address_that_keepalived_brought_and_flanneld_chose_costs_no_subnet() {
    take_over(&ipv4("vxlan"), End::Terminate, &["-public-ip=192.0.2.50"]).await;
}

async fn take_over(network: &str, end: End, flannelds: &[&str]) {
    let cluster = Cluster::new(2, network).await;
    let another = "192.0.2.50/32".parse().unwrap();
    cluster.host(0).add_addresses([another]).await.unwrap();
    let mut theirs = cluster.theirs(0);
    theirs.args(flannelds);
    let mut theirs =
        Flanneld::start(cluster.host(0), theirs, &cluster.subnet_file(0)).await.unwrap();
    let _peer = cluster.start_theirs(1).await;
    let pods = cluster.connected_pods().await;
    let subnet = cluster.subnet(0).to_string();
    let mac = mac(&cluster).await;
    // By all families that there are, in both directions.
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 100).unwrap();
    stop(theirs.process(), end).await;
    let _ours = cluster.start_ours(0).await;
    assert_eq!(cluster.subnet(0).to_string(), subnet);
    // The address that peers know stays, as long as the host has it.
    let leases = ["get", "--prefix", "--print-value-only", "/coreos.com/network/subnets/"];
    let leases = cluster.etcd.ctl(&leases).await.unwrap();
    assert_eq!(leases.contains("192.0.2.50"), !flannelds.is_empty(), "{leases}");
    assert_eq!(leases.matches("PublicIP\"").count(), 2, "{leases}");
    assert_eq!(self::mac(&cluster).await, mac);
    soon(streams.flowing()).await;
    let report = streams.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

async fn stop(process: &mut Process, end: End) {
    match end {
        End::Kill => process.kill().unwrap(),
        End::Terminate => process.terminate().unwrap(),
    }
    process.wait().await.unwrap();
}

/// The addresses of the vxlan devices; empty where there are none.
async fn mac(cluster: &Cluster) -> String {
    cluster.shell(0, "ip -br link | grep flannel | awk '{print $1, $3}' || true").await
}
