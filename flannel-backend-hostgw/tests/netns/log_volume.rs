//! How much is logged when much changes at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flannel_core::{Lease, testing::network::Nodes};
use flannel_netlink::{
    list_routes,
    state::{IpFamily, Route},
};
use tokio::time::timeout;
use tracing::{
    Event, Level, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

use crate::{IPV4, world};

/// Counts lines that an operator sees.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_link_that_flaps_under_2000_peers_costs_a_few_lines() {
    let world = world(IPV4).await;
    let mut nodes = Nodes::start(&world).await;
    let attrs = nodes.lease(1).attrs.clone();
    let lease = |n: usize| {
        let key = format!("10.244.{}.{}-28", 16 + n / 16, n % 16 * 16);
        Lease::new(key.parse().unwrap(), attrs.clone())
    };
    let peers = nodes.peers(0, (0..2000).map(lease));
    let lines = Lines::default();
    // With one subscriber alone, a line that another test's thread logs first would be known as one that nobody wants.
    let _other = tracing::Dispatch::new(Lines::default());
    let _guard = tracing::subscriber::set_default(lines.clone());
    let host = world.testbed().host(0);
    let network = nodes.network(0);
    assert!(network.sync(&peers).await.unwrap().added >= 2000);
    let mut repaired = 0;
    for step in 0..4 {
        match step {
            0 => host.unplug().await.unwrap(),
            1 => host.plug().await.unwrap(),
            // The kernel removes IPv4 routes with the link.
            2 => host.link_down().await.unwrap(),
            _ => host.link_up().await.unwrap(),
        }
        while let Ok(drifted) = timeout(Duration::from_secs(2), network.drifted()).await {
            drifted.unwrap();
            repaired += network.sync(&peers).await.unwrap().added;
        }
    }
    assert!(repaired >= 2000, "{repaired}");
    let mut kernel = host.connect().unwrap();
    let routes = list_routes(&mut kernel, Route::MAIN, IpFamily::V4).await.unwrap();
    assert!(routes.len() >= 2000);
    let lines = lines.0.load(Ordering::Relaxed);
    assert!((1..=40).contains(&lines), "{lines} lines");
}
