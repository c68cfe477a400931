//! What flannel reads and writes.

use std::time::Duration;

use flannel_core::{
    LeaseAttrs, LeaseEvent, NodeId, RawJson, Store, StoreError, Subnet, SubnetLease,
};
use futures::{StreamExt, stream::BoxStream};
use tokio::time::timeout;

use crate::cluster::{Cluster, PREFIX, Security};

/// A cluster with a network.
pub(crate) async fn network(members: usize) -> Cluster {
    let cluster = Cluster::start(members, Security::None).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    cluster
}

pub(crate) fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some([192, 0, 2, last].into()), ..LeaseAttrs::default() }
}

pub(crate) async fn acquire(store: &dyn Store, last: u8) -> Box<dyn SubnetLease> {
    timeout(LIMIT, store.acquire(&at(last))).await.expect("in time").unwrap()
}

pub(crate) async fn item(
    watch: &mut BoxStream<'static, Result<LeaseEvent, StoreError>>,
) -> Result<LeaseEvent, StoreError> {
    timeout(LIMIT, watch.next()).await.expect("an event in time").expect("a watch never ends")
}

/// Long enough for a loaded machine, and for three members that hang.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn keys_and_values_are_those_of_flannel() {
    let cluster = network(1).await;
    let attrs = LeaseAttrs {
        public_ip: Some("192.168.64.3".parse().unwrap()),
        backend_type: "vxlan".into(),
        backend_data: RawJson::new(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#).ok(),
        ..LeaseAttrs::default()
    };
    let lease = cluster.store("n1").acquire(&attrs).await.unwrap();
    let v4 = lease.lease().subnet.ipv4().unwrap();
    let kvs = cluster.kvs(&format!("{PREFIX}/subnets"));
    let [kv] = &kvs[..] else {
        panic!("flannel would take all of these for leases: {kvs:?}");
    };
    assert_eq!(kv.key, format!("/coreos.com/network/subnets/{}-24", v4.network()));
    assert_eq!(
        kv.value,
        r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#
    );
    let said = cluster.ctl(&["lease", "timetolive", &format!("{:x}", kv.lease), "--keys"]);
    assert!(said.contains("granted with TTL(86400s)"), "{said}");

    let owners = cluster.kvs(&format!("{PREFIX}/subnet-owners/"));
    assert_eq!(owners[0].value, "n1");
    assert_eq!((owners[0].lease, owners[0].revision), (kv.lease, kv.revision));
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn prefixes_are_joined_as_flannel_joins_them() {
    let cluster = Cluster::start(1, Security::None).await;
    cluster.put("/a/b/config", r#"{"Network":"10.3.0.0/16"}"#);
    let config = flannel_store::EtcdConfig { prefix: "/a//b/".into(), ..cluster.config() };
    let options = flannel_store::LeaseOptions::default();
    let store = flannel_store::EtcdStore::open(&config, "n1".parse().unwrap(), options).unwrap();
    acquire(&store, 1).await;
    assert_eq!(cluster.kvs("/a/b/subnets/").len(), 1);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_lease_of_flannel_is_adopted_by_its_address() {
    let cluster = network(1).await;
    let key = Cluster::lease_key("10.3.77.0-24");
    let value = r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan"}"#;
    let flannels = cluster.put_for(&key, value, 86_400);
    let other = acquire(&cluster.store("n2"), 8).await;
    assert_ne!(other.lease().subnet.to_string(), "10.3.77.0-24");

    let store = cluster.store("n1");
    let mut lease = acquire(&store, 7).await;
    assert_eq!(lease.lease().subnet.to_string(), "10.3.77.0-24");
    let kv = &cluster.kvs(&key)[0];
    assert_eq!(kv.value, at(7).to_string());
    assert!(kv.lease != 0 && kv.lease != flannels, "it has an etcd lease of its own");
    let said = cluster.ctl(&["lease", "list"]);
    assert!(said.contains(&format!("{flannels:x}")), "flannel's is not ours to revoke: {said}");
    lease.renew().await.unwrap();
    // flannel's own lease ends, and ours does not.
    cluster.ctl(&["lease", "revoke", &format!("{flannels:x}")]);
    lease.renew().await.unwrap();
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn flannel_writing_over_a_lease_is_noticed() {
    let cluster = network(1).await;
    let store = cluster.store("n1");
    let mut lease = acquire(&store, 1).await;
    let subnet = lease.lease().subnet;
    let mut watch = cluster.store("n2").watch();
    let LeaseEvent::Reset(before) = item(&mut watch).await.unwrap() else {
        panic!("expected a reset");
    };
    assert_eq!(before[0].node, NodeId::new("n1").ok());

    let key = Cluster::lease_key(subnet);
    cluster.put_for(&key, &at(9).to_string(), 86_400);
    let LeaseEvent::Upsert(now) = item(&mut watch).await.unwrap() else {
        panic!("expected an upsert");
    };
    assert_eq!((now.subnet, &now.node), (subnet, &None), "the owner written before counts no more");
    let mut late = cluster.store("n3").watch();
    let LeaseEvent::Reset(listed) = item(&mut late).await.unwrap() else {
        panic!("expected a reset");
    };
    assert_eq!((listed[0].subnet, listed[0].node.clone()), (subnet, None));

    let before = cluster.kvs(&key);
    for lost in [lease.renew().await, lease.publish(&at(2)).await, lease.release().await] {
        let Err(StoreError::Revoked { owner, .. }) = lost else {
            panic!("expected that it is lost, got {lost:?}");
        };
        assert_eq!(owner, NodeId::new("192.0.2.9").ok());
    }
    assert_eq!(cluster.kvs(&key), before);
    let again = acquire(&store, 1).await;
    assert_ne!(again.lease().subnet, subnet);
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn an_owner_left_behind_by_flannel_disturbs_nobody() {
    let cluster = network(1).await;
    let lease = acquire(&cluster.store("n1"), 1).await;
    let subnet = lease.lease().subnet;
    let ours = cluster.kvs(&Cluster::lease_key(subnet))[0].lease;
    cluster.put_for(&Cluster::lease_key(subnet), &at(9).to_string(), 86_400);
    let mut watch = cluster.store("n2").watch();
    item(&mut watch).await.unwrap();
    // Our etcd lease ends, and with it the owner alone.
    cluster.ctl(&["lease", "revoke", &format!("{ours:x}")]);
    assert_eq!(cluster.kvs(&format!("{PREFIX}/subnet-owners/")), []);
    let other = acquire(&cluster.store("n3"), 3).await;
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::upsert(other.lease().clone()));
    // The node of flannel's lease may be one of ours now.
    let adopted = acquire(&cluster.store("n9"), 9).await;
    assert_eq!(adopted.lease().subnet, subnet);
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::upsert(adopted.lease().clone()));
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn neighbours_of_our_keys_are_let_be() {
    let cluster = network(1).await;
    let strays = [
        "/coreos.com/network",
        "/coreos.com/network/policy/x",
        "/coreos.com/network/subnet-owners",
        "/coreos.com/network/subnet-owners-of-mine/10.3.1.0-24",
        "/coreos.com/network/subnet-owners/10.3.1.0-24",
        "/coreos.com/network/subnets",
        "/coreos.com/network/subnets-of-mine/10.3.1.0-24",
        "/coreos.com/network/subnets0",
        "/coreos.com/network2/subnets/10.3.1.0-24",
    ];
    for key in strays {
        cluster.put(key, &at(1).to_string());
    }
    let store = cluster.store("n1");
    let mut watch = store.watch();
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Reset(vec![]));
    let lease = acquire(&store, 1).await;
    for key in strays {
        cluster.put(key, &at(2).to_string());
    }
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::upsert(lease.lease().clone()));
    let subnet = lease.lease().subnet;
    lease.release().await.unwrap();
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet));
    let left = cluster.kvs("/coreos.com/network");
    assert_eq!(left.len(), strays.len() + 1, "{left:?}");
    assert_eq!(cluster.ctl(&["lease", "list"]).trim(), "found 0 leases");
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn operations_leave_no_etcd_lease_behind() {
    let cluster = network(1).await;
    let leases = || cluster.ctl(&["lease", "list"]).lines().count() - 1;
    let store = cluster.store("n1");
    let mut lease = acquire(&store, 1).await;
    assert_eq!(leases(), 1);
    let granted = cluster.kvs(&Cluster::lease_key(lease.lease().subnet))[0].lease;
    lease.publish(&at(2)).await.unwrap();
    lease.renew().await.unwrap();
    acquire(&store, 3).await;
    let kept = cluster.kvs(&Cluster::lease_key(lease.lease().subnet))[0].lease;
    assert_eq!((leases(), kept), (1, granted), "it serves as long as the TTL is the same");

    let day = Duration::from_secs(2 * 86_400);
    let options =
        flannel_store::LeaseOptions { ttl: day, ..flannel_store::LeaseOptions::default() };
    let mut longer = acquire(&cluster.store_with("n1", options), 3).await;
    let kv = &cluster.kvs(&Cluster::lease_key(longer.lease().subnet))[0];
    assert_ne!(kv.lease, granted);
    let said = cluster.ctl(&["lease", "timetolive", &format!("{:x}", kv.lease)]);
    assert!(said.contains("granted with TTL(172800s)"), "{said}");
    assert_eq!(leases(), 1);
    longer.renew().await.unwrap();
    longer.release().await.unwrap();
    assert_eq!(leases(), 0);
    let subnet: Subnet = "10.3.77.0-24".parse().unwrap();
    cluster.put(&Cluster::lease_key(subnet), &at(7).to_string());
    acquire(&store, 7).await;
    assert_eq!(leases(), 0, "a reservation has none");
}
