//! The part of the contract for stores in which somebody else chooses the subnets.

use std::{collections::BTreeMap, fs, sync::Arc};

use flannel_core::{
    LeaseAttrs, Store,
    testing::{Entry, StoreFixture},
};
use serde_json::json;

use crate::Cluster;

flannel_core::store_conformance!(@publish_and_watch Cluster, real_time);

impl StoreFixture for Cluster {
    async fn build(config: &str) -> Self {
        Self::new(config)
    }

    /// The cluster gives every node that comes a block: the free one with the lowest number.
    async fn store(&self, node: &str) -> Arc<dyn Store> {
        if self.server.get("nodes", node).is_none() {
            let taken: Vec<String> = self.entries().await.into_keys().collect();
            let blocks = (1..=255_u8).map(|n| format!("10.3.{n}.0/24"));
            let names: Vec<_> = self.server.names("nodes");
            let used = |block: &String| {
                names.iter().any(|name| {
                    self.server
                        .get("nodes", name)
                        .is_some_and(|node| node["spec"]["podCIDR"] == **block)
                }) || taken.contains(&block.replace('/', "-"))
            };
            let block = blocks.into_iter().find(|block| !used(block)).unwrap();
            self.server.add_node(node, &[&block], false);
        }
        Arc::new(Self::store(self, node))
    }

    async fn put(&self, key: &str, value: &str) {
        let block = key.replace('-', "/");
        let name = format!("by-hand-{}", key.replace(|c: char| !c.is_ascii_alphanumeric(), "."));
        self.server.add_node(&name, &[&block], false);
        self.annotate(&name, &json!({"kube-subnet-manager": value, "public-ip": value}));
    }

    async fn remove(&self, key: &str) {
        for name in self.server.names("nodes") {
            let node = self.server.get("nodes", &name).unwrap();
            if node["spec"]["podCIDR"] == key.replace('-', "/") {
                self.server.delete("nodes", &name);
            }
        }
    }

    async fn entries(&self) -> BTreeMap<String, Entry> {
        let mut entries = BTreeMap::new();
        for name in self.server.names("nodes") {
            if self.annotation(&name, "kube-subnet-manager").as_deref() != Some("true") {
                continue;
            }
            let node = self.server.get("nodes", &name).unwrap();
            let key = node["spec"]["podCIDR"].as_str().unwrap().replace('/', "-");
            let attrs = LeaseAttrs {
                public_ip: self.annotation(&name, "public-ip").and_then(|it| it.parse().ok()),
                backend_type: self.annotation(&name, "backend-type").unwrap_or_default().into(),
                ..LeaseAttrs::default()
            };
            entries.insert(key, Entry { value: attrs.to_string(), expires: false });
        }
        entries
    }

    async fn set_config(&self, config: Option<&str>) {
        let path = self.folder.path().join("net-conf.json");
        match config {
            Some(text) => fs::write(path, text).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
    }

    async fn outrun(&self) {
        self.server.cut_streams();
        self.server.compact();
    }

    async fn open_watches(&self) -> usize {
        self.server.open_streams()
    }
}
