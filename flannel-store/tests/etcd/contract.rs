//! The contract of a store on every kind of cluster.

use std::{collections::BTreeMap, marker::PhantomData, sync::Arc};

use flannel_core::{
    Store,
    testing::{Entry, StoreFixture},
};

use flannel_store::{EtcdRegistry, Registry, testing::RegistryFixture};

use crate::cluster::{Cluster, PREFIX, Security};

struct Fixture<K> {
    cluster: Cluster,
    kind: PhantomData<K>,
}

trait Kind {
    const MEMBERS: usize = 1;
    const SECURITY: Security = Security::None;
}

impl<K: Kind> StoreFixture for Fixture<K> {
    async fn build(config: &str) -> Self {
        let cluster = Cluster::start(K::MEMBERS, K::SECURITY).await;
        cluster.put(&format!("{PREFIX}/config"), config);
        Self { cluster, kind: PhantomData }
    }

    async fn store(&self, node: &str) -> Arc<dyn Store> {
        Arc::new(self.cluster.store(node))
    }

    async fn put(&self, key: &str, value: &str) {
        self.cluster.put(&Cluster::lease_key(key), value);
    }

    async fn remove(&self, key: &str) {
        self.cluster.delete(&Cluster::lease_key(key));
    }

    async fn entries(&self) -> BTreeMap<String, Entry> {
        let prefix = Cluster::lease_key("");
        let entry = |kv: crate::cluster::Kv| {
            let key = kv.key.strip_prefix(&prefix).unwrap().to_owned();
            (key, Entry { value: kv.value, expires: kv.lease != 0 })
        };
        self.cluster.kvs(&prefix).into_iter().map(entry).collect()
    }

    async fn set_config(&self, config: Option<&str>) {
        match config {
            Some(config) => self.cluster.put(&format!("{PREFIX}/config"), config),
            None => self.cluster.delete(&format!("{PREFIX}/config")),
        }
    }

    async fn outrun(&self) {
        self.cluster.compact();
    }

    async fn open_watches(&self) -> usize {
        self.cluster.open_watches()
    }
}

mod one_member {
    use super::*;

    struct One;

    impl Kind for One {}

    flannel_core::store_conformance!(#[ignore = "needs etcd: run ./ci.sh etcd"] Fixture<One>, real_time);
}

mod three_members {
    use super::*;

    struct Three;

    impl Kind for Three {
        const MEMBERS: usize = 3;
    }

    flannel_core::store_conformance!(#[ignore = "needs etcd: run ./ci.sh etcd"] Fixture<Three>, real_time);
}

mod with_certificates {
    use super::*;

    struct Certificates;

    impl Kind for Certificates {
        const SECURITY: Security = Security::Certificates;
    }

    flannel_core::store_conformance!(#[ignore = "needs etcd: run ./ci.sh etcd"] Fixture<Certificates>, real_time);
}

mod with_passwords {
    use super::*;

    struct Passwords;

    impl Kind for Passwords {
        const SECURITY: Security = Security::Passwords;
    }

    flannel_core::store_conformance!(#[ignore = "needs etcd: run ./ci.sh etcd"] Fixture<Passwords>, real_time);
}

struct Registries(Cluster);

impl RegistryFixture for Registries {
    async fn build(config: &str) -> Self {
        let cluster = Cluster::start(1, Security::None).await;
        cluster.put(&format!("{PREFIX}/config"), config);
        Self(cluster)
    }

    async fn registry(&self, _node: &str) -> impl Registry {
        EtcdRegistry::new(&self.0.config()).unwrap()
    }
}

mod registry {
    flannel_store::registry_conformance!(
        #[ignore = "needs etcd: run ./ci.sh etcd"]
        super::Registries,
        real_time
    );
}
