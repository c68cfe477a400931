//! Nodes that start together on an empty network, also beside others that look at keys alone as flanneld does.

use std::collections::BTreeSet;

use flannel_core::{LeaseEvent, Status, Store, Subnet, testing::FakeBackend};
use flannel_store::{LeaseOptions, Registry};
use futures::future::join_all;

use crate::{
    cluster::{Cluster, PREFIX, Security},
    flannel::{acquire, at, item},
};

const DUAL: &str = r#"{"Network":"10.3.0.0/17","EnableIPv6":true,"IPv6Network":"fd00::/57"}"#;

/// What the configuration is changed to while nodes start.
const CHANGED: [&str; 3] = [
    r#"{"Network":"10.3.0.0/17"}"#,
    r#"{"Network":"10.3.0.0/17","SubnetLen":25}"#,
    r#"{"Network":"10.3.0.0/17","SubnetLen":23,"EnableIPv6":true,"IPv6Network":"fd00::/57"}"#,
];

fn overlap(subnets: &[Subnet]) -> Option<(Subnet, Subnet)> {
    let pairs = subnets
        .iter()
        .enumerate()
        .flat_map(|(n, one)| subnets[..n].iter().map(move |other| (*one, *other)));
    pairs.into_iter().find(|(one, other)| one.overlaps(other))
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn thirty_nodes_that_start_together_share_no_address() {
    let cluster = Cluster::start(1, Security::None).await;
    for round in 0..20u8 {
        let prefix = format!("/round-{round}");
        cluster.put(&format!("{prefix}/config"), DUAL);
        let config = flannel_store::EtcdConfig { prefix: prefix.clone(), ..cluster.config() };
        let start = |n: u8| {
            // A third had another pair of blocks before, which others may have had in part.
            let hint = format!("10.3.{}.0-24&fd00:0:0:{:x}::-64", n / 2 % 9 + 1, n % 9 + 1);
            let hint = n.is_multiple_of(3).then(|| hint.parse().unwrap());
            let options = LeaseOptions { hint, ..LeaseOptions::default() };
            let id = format!("n{n}").parse().unwrap();
            flannel_store::EtcdStore::open(&config, id, options).unwrap()
        };
        let stores: Vec<_> = (0..30).map(start).collect();
        let nodes = stores.iter().zip(1..).map(|(store, n)| acquire(store, n));
        let change = async {
            if round % 2 == 1 {
                let text = CHANGED[usize::from(round / 2) % CHANGED.len()];
                cluster.put(&format!("{prefix}/config"), text);
            }
        };
        let (leases, ()) = futures::join!(join_all(nodes), change);
        let held: Vec<Subnet> = leases.iter().map(|lease| lease.lease().subnet).collect();
        assert_eq!(overlap(&held), None, "round {round}");
        let stored = cluster.kvs(&format!("{prefix}/subnets/"));
        let stored: BTreeSet<_> =
            stored.iter().map(|kv| kv.key.rsplit('/').next().unwrap().to_owned()).collect();
        assert_eq!(stored, held.iter().map(ToString::to_string).collect(), "round {round}");
    }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_node_moves_when_flanneld_takes_addresses_of_its_subnet() {
    let cluster = Cluster::start(1, Security::None).await;
    cluster.put(&format!("{PREFIX}/config"), DUAL);
    let backend = FakeBackend::new([192, 0, 2, 1].into());
    let store = std::sync::Arc::new(cluster.store("n1"));
    let options = flannel_core::NodeOptions::default();
    let node = flannel_core::Node::from_parts(store, std::sync::Arc::new(backend), options);
    let mut handle = node.handle();
    let _running = tokio::spawn(node.run());
    let before = handle.wait_for(Status::is_ready).await.unwrap().lease.unwrap().subnet;
    // flanneld without IPv6 compares with its own key.
    let v4 = before.ipv4().unwrap();
    let flannels = format!("{}-{}", v4.network(), v4.prefix());
    cluster.put_for(&Cluster::lease_key(&flannels), &at(9).to_string(), 86_400);
    let moved = |status: &Status| {
        status.is_ready() && status.lease.as_ref().is_some_and(|lease| lease.subnet != before)
    };
    let limit = std::time::Duration::from_secs(20);
    let after = tokio::time::timeout(limit, handle.wait_for(moved)).await.expect("it moves");
    let after = after.unwrap().lease.unwrap().subnet;
    assert!(!after.overlaps(&flannels.parse().unwrap()), "{after}");
    assert_eq!(after.ipv6(), before.ipv6(), "this half is still its own");
    let mut watch = cluster.store("n2").watch();
    let LeaseEvent::Reset(leases) = item(&mut watch).await.unwrap() else { panic!("no reset") };
    let mut stored: Vec<_> = leases.iter().map(|lease| lease.subnet.to_string()).collect();
    stored.sort_unstable();
    let mut expected = [flannels, after.to_string()];
    expected.sort_unstable();
    assert_eq!(stored, expected);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn what_overlaps_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start(1, Security::None).await;
    let registry = flannel_store::EtcdRegistry::new(&cluster.config()).unwrap();
    let write = |last: u8| flannel_store::NewRecord {
        value: at(last).to_string(),
        owner: format!("n{last}").parse().ok(),
        ttl: Some(std::time::Duration::from_secs(3600)),
    };
    registry.create("10.3.1.0-24&fd00:0:0:1::-64", &write(1)).await.unwrap();
    let refused = registry.create("10.3.1.0-24", &write(2)).await.unwrap_err();
    assert!(matches!(refused, flannel_store::RegistryError::Conflict { .. }), "{refused:?}");
    assert_eq!(cluster.kvs(&format!("{PREFIX}/")).len(), 2, "a lease and its owner");
    assert_eq!(cluster.ctl(&["lease", "list"]).lines().count(), 2, "a title and one lease");
}
