//! Packets to addresses that no pod has.

use flannel_backend_udp::Udp;
use flannel_netlink::{
    list_routes,
    state::{IpFamily, Route, RouteKind},
};
use tokio::{task::yield_now, time::timeout};

use crate::{
    lab::{Kind, Lab, PATIENCE},
    support::Kernel,
    wire::socket,
};

/// Where no pod's bridge is, a packet to a pod that is not there would go into the tunnel again, which tells its sender. With the
/// route it ends in the kernel.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_packet_to_nobody_ends_at_the_host_that_drops_what_no_pod_has() {
    for drops in [false, true] {
        let change = |n, udp: Udp| {
            if n == 1 && drops { udp.with_blackholes() } else { udp }
        };
        let mut lab = Lab::with(&[Kind::Ours, Kind::Ours], change).await;
        assert!(lab.reaches(0, 1).await || lab.reaches(0, 1).await, "pods have their addresses");
        let pod = socket(&lab.pods[0]);
        Kernel::of(lab.host(1)).delete("cni0").await;
        let stats = || lab.nodes[1].as_ref().unwrap().backend.stats();
        let before = stats().received.packets;
        for _ in 0..5 {
            pod.send_to(b"hello", "10.244.2.77:7777").unwrap();
        }
        let all_came = async {
            while stats().received.packets < before + 5 || stats().answered == 0 && !drops {
                yield_now().await;
            }
        };
        timeout(PATIENCE, all_came).await.unwrap();
        if !drops {
            continue;
        }
        // What goes back into the tunnel is there when the next packet comes.
        assert!(!lab.reaches(0, 1).await);
        assert_eq!(stats().answered, 0);
        // It is kept, and goes with the rest.
        let found = blackholes(&lab).await;
        assert_eq!(found.len(), 1);
        Kernel::of(lab.host(1)).0.apply_one(found[0].delete()).await.unwrap();
        timeout(PATIENCE, lab.node(1).network.drifted()).await.unwrap().unwrap();
        lab.sync(1).await.unwrap();
        assert_eq!(blackholes(&lab).await, found);
        lab.nodes[1].take().unwrap().network.teardown().await.unwrap();
        assert_eq!(blackholes(&lab).await, []);
    }
}

async fn blackholes(lab: &Lab) -> Vec<Route> {
    let mut kernel = Kernel::of(lab.host(1));
    let mut routes = list_routes(&mut kernel.0, Route::MAIN, IpFamily::V4).await.unwrap();
    routes.retain(|route| route.kind == RouteKind::Blackhole);
    routes
}
