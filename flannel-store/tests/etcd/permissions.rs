//! Users that may do less than everything.

use flannel_core::{LeaseEvent, Store};
use flannel_store::{LeaseOptions, Registry, RegistryError};
use futures::future::join_all;

use crate::{
    cluster::{Cluster, PREFIX, Security},
    flannel::{acquire, at, item},
};

/// A cluster whose user has `rights` alone.
async fn cluster(rights: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(1, Security::Passwords).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    cluster.ctl(&["role", "revoke-permission", "flannel", "--prefix=true", PREFIX]);
    for (right, key) in rights {
        let key = format!("{PREFIX}/{key}");
        cluster.ctl(&["role", "grant-permission", "flannel", "--prefix=true", right, &key]);
    }
    cluster
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn rights_that_suffice_for_flanneld_suffice() {
    let cluster = cluster(&[("read", "config"), ("readwrite", "subnets")]).await;
    let stores: Vec<_> = (1..=8).map(|n| cluster.store(&format!("n{n}"))).collect();
    let leases = join_all(stores.iter().zip(1..).map(|(store, n)| acquire(store, n))).await;
    let mut held: Vec<_> = leases.iter().map(|lease| lease.lease().subnet).collect();
    held.sort_unstable();
    held.dedup();
    assert_eq!(held.len(), 8);
    assert_eq!(cluster.kvs(&format!("{PREFIX}/subnet-owners")), []);

    let mut watch = cluster.store("watcher").watch();
    let LeaseEvent::Reset(all) = item(&mut watch).await.unwrap() else { panic!("no reset") };
    assert_eq!(all.len(), 8);
    let again = cluster.store("n1");
    let mut lease = acquire(&again, 1).await;
    assert_eq!(lease.lease().subnet, leases[0].lease().subnet);
    lease.renew().await.unwrap();
    lease.publish(&at(101)).await.unwrap();
    let subnet = lease.lease().subnet;
    for attrs in [at(1), at(101)] {
        let LeaseEvent::Upsert(seen) = item(&mut watch).await.unwrap() else { panic!("no upsert") };
        assert_eq!((seen.subnet, &seen.attrs), (subnet, &attrs));
    }
    lease.release().await.unwrap();
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet));
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn who_may_not_write_leaves_no_etcd_lease_behind() {
    let cluster = cluster(&[("read", "")]).await;
    let store = cluster.store_with("n1", LeaseOptions::default());
    for _ in 0..5 {
        assert!(store.acquire(&at(1)).await.is_err());
    }
    let registry = flannel_store::EtcdRegistry::new(&cluster.config()).unwrap();
    let write =
        flannel_store::NewRecord { value: at(1).to_string(), owner: None, ttl: Some(store_ttl()) };
    let denied = registry.create("10.3.7.0-24", &write).await.unwrap_err();
    assert!(matches!(denied, RegistryError::Denied { .. }), "{denied:?}");
    assert_eq!(cluster.ctl(&["lease", "list"]).trim(), "found 0 leases");
}

fn store_ttl() -> std::time::Duration {
    LeaseOptions::default().ttl
}
