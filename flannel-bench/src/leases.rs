//! A store with the leases of peers that nobody runs.

mod etcd;
mod file;

use std::{ffi::OsString, path::Path, time::Duration};

use anyhow::{Context, Result};
use flannel_core::{LeaseAttrs, NetworkConfig, RawJson, Subnet};
use flannel_store::{Registry, RegistryError};
use flannel_testbed::Host;
use tempfile::TempDir;
use tokio::time::Instant;

use self::{etcd::Etcd, file::File};
use crate::{
    args::StoreKind,
    arrivals::Arrivals,
    etcd::Watch,
    network::{self, Plan, address, block},
};

/// The store, the network in it, and a folder for what belongs to the same cluster.
#[derive(Debug)]
pub(crate) struct Leases {
    // Ends before its folder goes.
    engine: Engine,
    backend: String,
    folder: TempDir,
}

#[derive(Debug)]
enum Engine {
    Etcd(Box<Etcd>),
    File(File),
}

/// Hears of the next lease that is written.
#[derive(Debug)]
pub(crate) enum NextLease {
    Etcd(Watch),
    File(Arrivals),
}

impl Leases {
    /// The store of a network with the leases of its peers, on `host` if it is a server.
    pub(crate) async fn build(scratch: &Path, host: &Host, plan: Plan<'_>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("flannel-bench-").tempdir_in(scratch);
        let folder =
            folder.with_context(|| format!("cannot make a folder in {}", scratch.display()))?;
        let engine = match plan.store {
            StoreKind::Etcd => {
                Engine::Etcd(Box::new(Etcd::start(host, folder.path(), plan).await?))
            }
            StoreKind::File => Engine::File(File::make(folder.path().join("store"), plan).await?),
        };
        Ok(Self { engine, backend: plan.backend.into(), folder })
    }

    /// The folder for everything else that belongs to the same cluster.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How a node is told of the store; with etcd in flanneld's words.
    pub(crate) fn node_args(&self) -> Vec<OsString> {
        match &self.engine {
            Engine::Etcd(etcd) => etcd.node_args(),
            Engine::File(file) => file.node_args(),
        }
    }

    /// Writes the lease of a peer, in one step.
    pub(crate) async fn add(&mut self, number: u32) -> Result<()> {
        match &mut self.engine {
            Engine::Etcd(etcd) => etcd.add(&self.backend, number..number + 1).await,
            Engine::File(file) => file.add(&self.backend, number),
        }
    }

    /// Removes the lease of a peer.
    pub(crate) async fn remove(&mut self, number: u32) -> Result<()> {
        match &self.engine {
            Engine::Etcd(etcd) => etcd.remove(number).await,
            Engine::File(file) => file.remove(number),
        }
    }

    /// Reads all leases with our code. How many there are, and how long that took.
    pub(crate) async fn list(&self) -> Result<(usize, Duration)> {
        match &self.engine {
            Engine::Etcd(etcd) => etcd.list().await,
            Engine::File(file) => file.list().await,
        }
    }

    /// Reads all that the store has, as plainly as can be, and returns how long that took.
    pub(crate) async fn read_plainly(&self) -> Result<Duration> {
        match &self.engine {
            Engine::Etcd(etcd) => etcd.read_plainly().await,
            Engine::File(file) => file.read_plainly(),
        }
    }

    /// Hears of the next lease that somebody writes from now on.
    pub(crate) async fn next_lease(&self) -> Result<NextLease> {
        match &self.engine {
            Engine::Etcd(etcd) => Ok(NextLease::Etcd(etcd.watch().await?)),
            Engine::File(file) => Ok(NextLease::File(Arrivals::watch(&file.subnets())?)),
        }
    }

    /// Puts another configuration in the place of the network's.
    pub(crate) async fn reconfigure(&mut self, config: &NetworkConfig) -> Result<()> {
        let json = serde_json::to_string(config).context("cannot print a network config")?;
        match &self.engine {
            Engine::Etcd(etcd) => etcd.reconfigure(json).await,
            Engine::File(file) => file.reconfigure(&json).await,
        }
    }
}

impl NextLease {
    /// Waits for it, and says when it was there.
    pub(crate) async fn written(&mut self) -> Result<Instant> {
        match self {
            Self::Etcd(watch) => watch.written().await,
            Self::File(arrivals) => {
                arrivals.any().await?;
                Ok(Instant::now())
            }
        }
    }
}

/// Replaces the configuration in any store of ours.
async fn replace_config(registry: &impl Registry, json: &str) -> Result<(), RegistryError> {
    let was = registry.config().await?;
    registry.set_config(&was, json).await
}

/// The key of a peer's lease.
fn key(number: u32) -> Result<String> {
    let subnet = Subnet::new(Some(block(number)), None).context("a block is a subnet")?;
    Ok(subnet.to_string())
}

/// Who a peer says it is.
fn node(number: u32) -> String {
    format!("peer{number}")
}

/// What a peer publishes.
pub(crate) fn attrs(backend: &str, number: u32) -> Result<LeaseAttrs> {
    let kind = network::kind(backend);
    let mut attrs = LeaseAttrs { public_ip: Some(address(number)), ..LeaseAttrs::default() };
    if kind == "vxlan" {
        let [_, a, b, c] = number.to_be_bytes();
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:f2:00:{a:02x}:{b:02x}:{c:02x}"}}"#);
        attrs.backend_data = Some(RawJson::new(&data)?);
    }
    // A lease of that backend names none.
    if kind != "udp" {
        attrs.backend_type = kind.into();
    }
    Ok(attrs)
}

/// Longer than any benchmark.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
