//! The backends that a daemon can carry packets with, by name.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::anyhow;
use flannel_backend::{Alloc, Paths, UplinkFinder, UplinkOptions};
use flannel_backend_extension::Extension;
use flannel_backend_hostgw::HostGw;
use flannel_backend_udp::{Meter, Udp};
use flannel_backend_vxlan::Vxlan;
use flannel_core::{Backend, NetworkConfig, NodeId};
use flannel_netlink::Namespace;

use crate::InvalidOptions;

/// Constructors of backends by the name that a network's configuration has in `Backend.Type`. An embedder [adds](Self::add) its own.
#[derive(Clone)]
pub struct Backends(BTreeMap<String, Arc<dyn Construct>>);

trait Construct: Send + Sync {
    fn construct(&self, request: &BackendRequest<'_>) -> anyhow::Result<BuiltBackend>;
}

impl<F> Construct for F
where
    F: Fn(&BackendRequest<'_>) -> anyhow::Result<BuiltBackend> + Send + Sync,
{
    fn construct(&self, request: &BackendRequest<'_>) -> anyhow::Result<BuiltBackend> {
        self(request)
    }
}

/// What a backend is made of.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BackendRequest<'a> {
    /// The network, with the backend's own options.
    pub config: &'a NetworkConfig,
    /// Where the node runs.
    pub namespace: &'a Namespace,
    /// Finds the interface that peers are reached from.
    pub uplink: &'a UplinkFinder,
    /// The node's name, if it has one apart from its address.
    pub node: Option<&'a NodeId>,
    /// What is known of the paths to peers.
    pub paths: &'a Paths,
    /// Whether packets to addresses of our subnet that no pod has are dropped.
    pub blackhole: bool,
    /// The file that tells others about the subnet. What a backend has to remember until a reboot goes beside it.
    pub subnet_file: &'a Path,
}

/// A backend, and what it says of itself.
#[derive(Debug)]
pub struct BuiltBackend {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) udp: Option<Meter>,
}

impl<B: Backend> From<B> for BuiltBackend {
    fn from(backend: B) -> Self {
        Self { backend: Arc::new(backend), udp: None }
    }
}

impl Backends {
    /// No backends at all.
    pub const fn empty() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds a backend under a name; replaces the one that had it.
    ///
    /// The constructor says whether the network's configuration is valid for the backend, and touches nothing.
    #[must_use]
    pub fn add<B: Into<BuiltBackend>, E: Into<anyhow::Error>>(
        mut self,
        name: &str,
        constructor: impl Fn(&BackendRequest<'_>) -> Result<B, E> + Send + Sync + 'static,
    ) -> Self {
        let constructor = move |request: &BackendRequest<'_>| match constructor(request) {
            Ok(backend) => Ok(backend.into()),
            Err(error) => Err(error.into()),
        };
        self.0.insert(name.into(), Arc::new(constructor));
        self
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Refuses a network whose backend is not here, or whose options the backend cannot use. Touches nothing.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] that names the key, and what would be valid.
    pub fn check(&self, config: &NetworkConfig) -> Result<(), InvalidOptions> {
        let check = || {
            self.constructor(config)?;
            let namespace = Namespace::current()?;
            let uplink = UplinkFinder::new(&namespace, config, &UplinkOptions::default())?;
            let (node, paths, blackhole) = (None, &Paths::default(), false);
            let (namespace, uplink, subnet_file) = (&namespace, &uplink, Path::new(""));
            self.build(&BackendRequest {
                config,
                namespace,
                uplink,
                node,
                paths,
                blackhole,
                subnet_file,
            })
        };
        check().map(drop).map_err(InvalidOptions::new)
    }

    pub(crate) fn build(&self, request: &BackendRequest<'_>) -> anyhow::Result<BuiltBackend> {
        self.constructor(request.config)?.construct(request)
    }

    fn constructor(&self, config: &NetworkConfig) -> anyhow::Result<&dyn Construct> {
        let kind = config.backend().kind();
        self.0.get(kind).map(AsRef::as_ref).ok_or_else(|| {
            let known = self.names().collect::<Vec<_>>().join(", ");
            match kind {
                "" => anyhow!("network config: Backend has no Type, expected one of: {known}"),
                other => {
                    anyhow!("network config: Backend.Type is {other:?}, expected one of: {known}")
                }
            }
        })
    }
}

impl Default for Backends {
    /// Those of this project.
    fn default() -> Self {
        let alloc = |request: &BackendRequest<'_>| -> anyhow::Result<_> {
            Ok(Alloc::new(request.uplink.clone()))
        };
        let extension = |request: &BackendRequest<'_>| {
            let record = extension_record(request.subnet_file);
            Extension::new(request.config, request.uplink.clone(), record)
        };
        Self::empty()
            .add("alloc", alloc)
            .add("extension", extension)
            .add("host-gw", host_gw)
            .add("udp", udp)
            .add("vxlan", vxlan)
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backends").field(&self.names().collect::<Vec<_>>()).finish()
    }
}

/// Where the extension backend keeps its record of peers.
pub(crate) fn extension_record(subnet_file: &Path) -> PathBuf {
    subnet_file.with_extension("extension.json")
}

fn host_gw(request: &BackendRequest<'_>) -> anyhow::Result<HostGw> {
    let backend = HostGw::new(request.config, request.uplink.clone())?;
    let backend = backend.with_paths(request.paths.clone());
    Ok(if request.blackhole { backend.with_blackholes() } else { backend })
}

fn udp(request: &BackendRequest<'_>) -> anyhow::Result<BuiltBackend> {
    let backend = Udp::new(request.config, request.uplink.clone())?;
    let backend = backend.with_paths(request.paths.clone());
    let backend = if request.blackhole { backend.with_blackholes() } else { backend };
    let meter = backend.meter();
    Ok(BuiltBackend { backend: Arc::new(backend), udp: Some(meter) })
}

fn vxlan(request: &BackendRequest<'_>) -> anyhow::Result<Vxlan> {
    let backend = Vxlan::new(request.config, request.uplink.clone())?;
    let mut backend = backend.with_paths(request.paths.clone());
    if let Some(node) = request.node {
        backend = backend.with_identity(node.clone());
    }
    Ok(if request.blackhole { backend.with_blackholes() } else { backend })
}
