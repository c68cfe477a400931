//! Leases in a real etcd that the benchmark runs.

use std::{ffi::OsString, ops::Range, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use flannel_netlink::Namespace;
use flannel_store::{EtcdConfig, EtcdRegistry, Registry};
use flannel_testbed::Host;
use tokio::{runtime, task::spawn_blocking, time::Instant};

use super::{LIFETIME, attrs, key, node, replace_config};
use crate::{
    etcd::{Put, Server, Watch},
    network::{Plan, network},
};

/// A server, and where it is.
#[derive(Debug)]
pub(super) struct Etcd {
    server: Server,
    namespace: Namespace,
    /// The etcd lease of all leases of peers.
    lease: i64,
}

impl Etcd {
    pub(super) async fn start(host: &Host, folder: &Path, plan: Plan<'_>) -> Result<Self> {
        let Plan { backend, peers, .. } = plan;
        let server = Server::start(Path::new("etcd"), host, folder).await?;
        let lease = server.client.grant(LIFETIME).await?;
        let etcd = Self { server, namespace: host.namespace().clone(), lease };
        let value = serde_json::to_string(&network(backend, plan.family)?)
            .context("cannot print a network config")?;
        let put = Put { key: format!("{PREFIX}/config"), value, lease: 0 };
        etcd.server.client.write(&[put], &[]).await?;
        for first in (0..peers).step_by(LEASES_PER_WRITE as usize) {
            etcd.add(backend, first..peers.min(first + LEASES_PER_WRITE)).await?;
        }
        Ok(etcd)
    }

    pub(super) fn node_args(&self) -> Vec<OsString> {
        vec!["--etcd-endpoints".into(), self.endpoint().into()]
    }

    /// Writes leases as nodes of ours do, with their owners. They share one etcd lease.
    pub(super) async fn add(&self, backend: &str, numbers: Range<u32>) -> Result<()> {
        let mut puts = Vec::new();
        for number in numbers {
            let lease = self.lease;
            let (owner, value) = (node(number), attrs(backend, number)?.to_string());
            puts.push(Put { key: owner_key(number)?, value: owner, lease });
            puts.push(Put { key: lease_key(number)?, value, lease });
        }
        self.server.client.write(&puts, &[]).await
    }

    pub(super) async fn remove(&self, number: u32) -> Result<()> {
        let keys = [owner_key(number)?, lease_key(number)?];
        self.server.client.write(&[], &keys).await
    }

    /// On a connection that is there already, as for a plain read.
    pub(super) async fn list(&self) -> Result<(usize, Duration)> {
        self.inside(|registry| async move {
            registry.config().await?;
            let start = Instant::now();
            let listed = registry.list().await?;
            Ok((listed.records.len(), start.elapsed()))
        })
        .await
    }

    pub(super) async fn read_plainly(&self) -> Result<Duration> {
        let start = Instant::now();
        let (count, _) = self.server.client.read(&owners(), &behind(&leases())).await?;
        let took = start.elapsed();
        ensure!(count % 2 == 0, "{count} keys are not those of leases and their owners");
        Ok(took)
    }

    pub(super) async fn watch(&self) -> Result<Watch> {
        // Of an empty range, for the revision.
        let (_, revision) = self.server.client.read(" ", "!").await?;
        self.server.client.watch(&leases(), &behind(&leases()), revision).await
    }

    pub(super) async fn reconfigure(&self, json: String) -> Result<()> {
        self.inside(|registry| async move { Ok(replace_config(&registry, &json).await?) }).await
    }

    /// Calls our own client, inside the namespace in which etcd can be reached.
    async fn inside<T, F>(&self, call: impl FnOnce(EtcdRegistry) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let config = EtcdConfig { endpoints: vec![self.endpoint()], ..EtcdConfig::default() };
        let namespace = self.namespace.clone();
        let called = spawn_blocking(move || {
            namespace.run(|| {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.context("cannot start a runtime")?;
                let registry = EtcdRegistry::new(&config)?;
                runtime.block_on(call(registry))
            })
        });
        called.await??
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }
}

fn leases() -> String {
    format!("{PREFIX}/subnets/")
}

fn owners() -> String {
    format!("{PREFIX}/subnet-owners/")
}

fn lease_key(number: u32) -> Result<String> {
    Ok(leases() + &key(number)?)
}

fn owner_key(number: u32) -> Result<String> {
    Ok(owners() + &key(number)?)
}

/// The first key behind a folder: `0` comes after `/`.
fn behind(folder: &str) -> String {
    format!("{}0", folder.trim_end_matches('/'))
}

/// flannel's own.
const PREFIX: &str = "/coreos.com/network";

/// etcd takes 128 operations at once unless told otherwise.
const LEASES_PER_WRITE: u32 = 64;
