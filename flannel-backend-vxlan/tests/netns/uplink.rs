//! Addresses of the uplink that come, go and change while nodes run.

use std::time::Duration;

use flannel_core::{FaultKind, Status};
use flannel_netlink::state::Address;
use flannel_testbed::{Testbed, probe};
use tokio::time::timeout;

use crate::{
    nodes::{Cluster, PATIENCE},
    support::{DUAL, IPV4, Kernel},
};

/// What the kernel may take on a busy machine.
const LONG: Duration = Duration::from_secs(60);

impl Kernel {
    async fn uplink_address(&mut self, text: &str) -> Address {
        let mut address = Address::new(self.link("eth0").await.index, text.parse().unwrap());
        address.no_duplicate_detection = true;
        address
    }

    async fn add(&mut self, text: &str) {
        let address = self.uplink_address(text).await;
        self.0.apply_one(address.replace()).await.unwrap();
    }

    async fn remove(&mut self, text: &str) {
        let address = self.uplink_address(text).await;
        self.0.apply_one(address.delete()).await.unwrap();
    }
}

impl Cluster {
    pub(crate) async fn wait_for(
        &self,
        node: usize,
        condition: impl FnMut(&Status) -> bool,
    ) -> Status {
        let mut handle = self.handles[node].clone();
        let status = timeout(LONG, handle.wait_for(condition)).await;
        status.unwrap_or_else(|_| panic!("in time: {:#?}", self.status(node))).expect("a node")
    }
}

fn has(status: &Status, kind: FaultKind) -> bool {
    status.faults.iter().any(|fault| fault.kind == kind)
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn addresses_that_flap_are_never_published() {
    let cluster = Cluster::start(DUAL).await;
    let published = cluster.status(0).lease.unwrap().attrs;
    let mut handle = cluster.handles[0].clone();
    let other = handle
        .wait_for(|status| status.lease.as_ref().is_some_and(|lease| lease.attrs != published));
    let mut kernel = Kernel::of(cluster.testbed.host(0));
    let flaps = async {
        for _ in 0..30 {
            for address in ["2001:db8::9/64", "fd00:9::9/64", "2001:db8::100/128", "192.0.2.100/32"]
            {
                kernel.add(address).await;
                tokio::task::yield_now().await;
                kernel.remove(address).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(cluster.flows(PATIENCE).await);
    };
    tokio::select! {
        () = flaps => {}
        status = other => panic!("{:?}", status.unwrap().lease),
    }
    assert_eq!(cluster.status(0).lease.unwrap().attrs, published);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn without_an_address_peers_stay_and_the_node_is_not_ready() {
    let cluster = Cluster::start(IPV4).await;
    let host = cluster.testbed.host(0);
    let mut kernel = Kernel::of(host);
    let address = format!("{}/24", host.ipv4().unwrap());
    kernel.remove(&address).await;
    let status = cluster.wait_for(0, |status| has(status, FaultKind::AddressMissing)).await;
    assert!(!status.is_ready());
    let fault = status.faults.iter().find(|it| it.kind == FaultKind::AddressMissing).unwrap();
    assert_eq!(
        fault.to_string(),
        "cannot reach peers through eth0: it has no usable IPv4 address; give it one"
    );
    assert_eq!(kernel.forwarding("flannel.1").await.len(), 1, "the peer stays");
    assert_eq!(status.lease.unwrap().attrs.public_ip, host.ipv4());
    kernel.add(&address).await;
    cluster
        .wait_for(0, |status| status.is_ready() && !has(status, FaultKind::AddressMissing))
        .await;
    assert!(cluster.flows(LONG).await);

    host.delete_uplink().await.unwrap();
    let status = cluster.wait_for(0, |status| has(status, FaultKind::AddressMissing)).await;
    assert!(!status.is_ready() && status.faults.iter().any(|it| it.reason == "it does not exist"));
    host.create_uplink().await.unwrap();
    cluster.wait_for(0, Status::is_ready).await;
    assert!(cluster.flows(LONG).await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_family_without_an_address_is_reported_and_the_other_serves() {
    let testbed = Testbed::new(2).await.unwrap();
    let host = testbed.host(0);
    let [v4, v6] = [host.addresses()[0], host.addresses()[1]];
    host.set_addresses([v4]).await.unwrap();
    let cluster = Cluster::start_on(testbed, DUAL).await;
    let status = cluster.wait_for(0, |status| has(status, FaultKind::FamilyUnusable)).await;
    assert!(status.is_ready());
    let attrs = status.lease.unwrap().attrs;
    assert_eq!((attrs.public_ip.map(Into::into), attrs.public_ipv6), (Some(v4.ip()), None));
    let [ipv4, _] = [0, 1].map(|at| cluster.pods[1].endpoint().ips().nth(at).unwrap());
    let stream = probe::stream(&cluster.pods[0], ipv4, 50).unwrap();
    timeout(LONG, stream.flowing()).await.expect("IPv4 works");
    // It comes later, as by a router's advertisement.
    cluster.testbed.host(0).set_addresses([v4, v6]).await.unwrap();
    cluster.wait_for(0, |status| !has(status, FaultKind::FamilyUnusable)).await;
    assert!(cluster.flows(LONG).await);
    assert_eq!(cluster.status(0).lease.unwrap().attrs.public_ipv6.map(Into::into), Some(v6.ip()));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_renumbered_node_is_reached_at_once() {
    let cluster = Cluster::start(IPV4).await;
    let host = cluster.testbed.host(0);
    let mut kernel = Kernel::of(host);
    let mut old = format!("{}/24", host.ipv4().unwrap());
    for (new, make_before_break) in [("192.0.2.77/24", false), ("192.0.2.78/24", true)] {
        let stream = probe::stream(&cluster.pods[1], cluster.pods[0].ip(), 100).unwrap();
        timeout(LONG, stream.flowing()).await.expect("flows");
        if make_before_break {
            // A second address of the same block goes with the first one, unless it has no block.
            kernel.add(&new.replace("/24", "/32")).await;
        }
        kernel.remove(&old).await;
        kernel.add(new).await;
        timeout(LONG, stream.flowing()).await.expect("flows again");
        let report = stream.stop().await;
        println!("to {new}: {report}");
        assert!(report.longest_gap < Duration::from_secs(3), "{report}");
        old = new.into();
    }
}
