//! The counts of each peer, as peers come, change and go.

use std::net::IpAddr;

use flannel_backend_udp::PeerStats;
use flannel_core::Backend;
use tokio::time::{Instant, sleep};

use crate::lab::{Kind, Lab, PATIENCE};

/// What host 0 has counted of another one; `None` if it does not know it.
fn counts(lab: &Lab, of: usize) -> Option<PeerStats> {
    let stats = lab.nodes[0].as_ref().unwrap().backend.stats();
    stats.peers.get(&IpAddr::from(lab.address(of))).cloned()
}

/// Waits until so many packets went to the host and as many came from it.
async fn expect(lab: &Lab, of: usize, packets: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counts = counts(lab, of).unwrap();
        if (counts.packets_sent, counts.packets_received) == (packets, packets) {
            return;
        }
        assert!(Instant::now() < deadline, "{counts:?}, not {packets}");
        sleep(PATIENCE / 100).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_peer_counts_on_while_it_is_there() {
    let mut lab = Lab::new(&[Kind::Ours; 3]).await;
    assert!(lab.reaches(0, 1).await && lab.reaches(0, 2).await);
    expect(&lab, 1, 1).await;
    expect(&lab, 2, 1).await;
    // One goes, and the other has another subnet as well.
    let mut other = lab.leases[1].clone();
    other.subnet = "10.244.9.0-24".parse().unwrap();
    let peers = lab.peers_of(0, vec![lab.leases[1].clone(), other]);
    lab.node(0).network.sync(&peers).await.unwrap();
    assert!(lab.reaches(0, 1).await);
    expect(&lab, 1, 2).await;
    assert_eq!(counts(&lab, 2), None);
    // The data path begins anew.
    let lease = lab.leases[0].clone();
    let network = lab.node(0).backend.start(&lease).await.unwrap();
    lab.node(0).network = network;
    lab.sync(0).await.unwrap();
    assert!(lab.reaches(0, 1).await);
    expect(&lab, 1, 3).await;
    assert_eq!(counts(&lab, 2), Some(PeerStats::default()), "it has come back");
    let report = lab.node(0).backend.report();
    assert_eq!(report.peers[&IpAddr::from(lab.address(1))]["packets_received"], 3);
    let peers = lab.peers_of(0, vec![lab.leases[2].clone()]);
    lab.node(0).network.sync(&peers).await.unwrap();
    assert_eq!(counts(&lab, 1), None);
}
