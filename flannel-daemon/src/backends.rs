//! The backends that a daemon can carry packets with, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use flannel_backend::{Alloc, Paths, UplinkFinder, UplinkOptions};
use flannel_backend_extension::Extension;
use flannel_backend_hostgw::HostGw;
use flannel_backend_udp::Udp;
use flannel_backend_vxlan::Vxlan;
use flannel_backend_wireguard::{DEVICES, NAMES, Wireguard};
use flannel_core::{Backend, BackendError, NetworkConfig, NodeId, Place};
use flannel_firewall::Family;
use flannel_netlink::Namespace;

use crate::{InvalidOptions, self_test_nat::SelfTestNat};

/// Constructors of backends by the name that a network's configuration has in `Backend.Type`. An embedder [adds](Self::add) its own.
#[derive(Clone)]
pub struct Backends {
    constructors: BTreeMap<String, Arc<dyn Construct>>,
    /// Those that load BPF programs.
    with_bpf: BTreeSet<String>,
    /// Those that encrypt, with their devices.
    encrypting: BTreeMap<String, String>,
    /// Those that work beside another one.
    migrating: BTreeSet<String>,
}

trait Construct: Send + Sync {
    fn construct(&self, request: &BackendRequest<'_>) -> Result<Arc<dyn Backend>, InvalidOptions>;
}

impl<F> Construct for F
where
    F: Fn(&BackendRequest<'_>) -> Result<Arc<dyn Backend>, InvalidOptions> + Send + Sync,
{
    fn construct(&self, request: &BackendRequest<'_>) -> Result<Arc<dyn Backend>, InvalidOptions> {
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
    /// Whether packets that the backend cannot encrypt are refused. Only those that [encrypt](Backends::encrypting) are asked.
    pub require_encryption: bool,
    /// The file that tells others about the subnet. What a backend has to remember until a reboot goes beside it.
    pub subnet_file: &'a Path,
    /// The file of WireGuard's private key, if it is not beside that one. Then it is the operator's, and is not removed.
    pub wireguard_key_file: Option<&'a Path>,
    /// Whether the node is about to start: the last moment for work on a thread that needs rights which the sandbox gives up.
    pub starts: bool,
    /// Whether it is to work beside another backend of the node.
    pub place: Place,
}

impl Backends {
    /// No backends at all.
    pub const fn empty() -> Self {
        Self {
            constructors: BTreeMap::new(),
            with_bpf: BTreeSet::new(),
            encrypting: BTreeMap::new(),
            migrating: BTreeSet::new(),
        }
    }

    /// Adds a backend under a name; replaces the one that had it.
    ///
    /// The constructor says whether the network's configuration is valid for the backend, and touches nothing unless the node
    /// [starts](BackendRequest::starts).
    #[must_use]
    pub fn add<B: Backend, E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        name: &str,
        constructor: impl Fn(&BackendRequest<'_>) -> Result<B, E> + Send + Sync + 'static,
    ) -> Self {
        let constructor =
            move |request: &BackendRequest<'_>| -> Result<Arc<dyn Backend>, InvalidOptions> {
                Ok(Arc::new(constructor(request).map_err(InvalidOptions::new)?))
            };
        self.constructors.insert(name.into(), Arc::new(constructor));
        self
    }

    /// Lets the backend of this name load BPF programs in a sandbox.
    #[must_use]
    pub fn with_bpf(mut self, name: &str) -> Self {
        self.with_bpf.insert(name.into());
        self
    }

    /// Says that the backend of this name encrypts what goes through its `devices`, as
    /// [`FirewallOptions::tunnels`](flannel_firewall::FirewallOptions::tunnels) names them. Backends between which nodes migrate have the same.
    #[must_use]
    pub fn encrypting(mut self, name: &str, devices: &str) -> Self {
        self.encrypting.insert(name.into(), devices.into());
        self
    }

    /// Lets a running node move to and from the backend of this name, which works at any [`Place`].
    #[must_use]
    pub fn migrating(mut self, name: &str) -> Self {
        self.migrating.insert(name.into());
        self
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.constructors.keys().map(String::as_str)
    }

    /// Refuses a network whose backend is not here, or whose options the backend cannot use. Touches nothing.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] that names the key, and what would be valid.
    pub fn check(&self, config: &NetworkConfig) -> Result<(), InvalidOptions> {
        self.constructor(config)?;
        let namespace = &Namespace::current().map_err(InvalidOptions::new)?;
        let uplink = UplinkFinder::new(namespace, config, &UplinkOptions::default());
        let uplink = &uplink.map_err(InvalidOptions::new)?;
        let (node, paths, blackhole, subnet_file) = (None, &Paths::default(), false, Path::new(""));
        self.build(&BackendRequest {
            config,
            namespace,
            uplink,
            node,
            paths,
            blackhole,
            require_encryption: false,
            subnet_file,
            wireguard_key_file: None,
            starts: false,
            place: Place::default(),
        })
        .map(drop)
    }

    pub(crate) fn build(
        &self,
        request: &BackendRequest<'_>,
    ) -> Result<Arc<dyn Backend>, InvalidOptions> {
        let (constructor, kind) =
            (self.constructor(request.config)?, request.config.backend().kind());
        if request.place.beside && !self.migrating.contains(kind) {
            return Err(InvalidOptions::new(format!(
                "the {kind} backend does not work beside another one"
            )));
        }
        constructor.construct(request)
    }

    /// Whether the network's backend loads BPF programs.
    pub(crate) fn loads_bpf(&self, config: &NetworkConfig) -> bool {
        self.with_bpf.contains(config.backend().kind())
    }

    /// The devices that encrypt the packets of each family.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] if the network's backend does not encrypt.
    pub(crate) fn tunnels(
        &self,
        config: &NetworkConfig,
    ) -> Result<BTreeMap<Family, String>, InvalidOptions> {
        let kind = config.backend().kind();
        let devices = self.encrypting.get(kind).ok_or_else(|| {
            let known = self.encrypting.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            InvalidOptions::new(format!(
                "network config: Backend.Type is {kind:?}, which does not encrypt, and encryption is required: configure {known}, or \
                 leave out --require-encryption"
            ))
        })?;
        let has =
            [(Family::Ipv4, config.ipv4().is_some()), (Family::Ipv6, config.ipv6().is_some())];
        let with = |(family, has): (Family, bool)| has.then(|| (family, devices.clone()));
        Ok(has.into_iter().filter_map(with).collect())
    }

    fn constructor(&self, config: &NetworkConfig) -> Result<&dyn Construct, InvalidOptions> {
        let kind = config.backend().kind();
        self.constructors.get(kind).map(AsRef::as_ref).ok_or_else(|| {
            let known = self.names().collect::<Vec<_>>().join(", ");
            InvalidOptions::new(match kind {
                "" => format!("network config: Backend has no Type, expected one of: {known}"),
                other => {
                    format!("network config: Backend.Type is {other:?}, expected one of: {known}")
                }
            })
        })
    }
}

impl Default for Backends {
    /// Those of this project.
    fn default() -> Self {
        let backends = Self::empty()
            .add("alloc", |request| Ok::<_, BackendError>(Alloc::new(request.uplink.clone())))
            .add("extension", extension)
            .add("host-gw", host_gw)
            .migrating("host-gw")
            .add("udp", udp)
            .migrating("udp")
            .with_bpf("udp")
            .add("vxlan", vxlan)
            .migrating("vxlan");
        NAMES.into_iter().fold(backends, |backends, name| {
            backends.add(name, wireguard).encrypting(name, DEVICES).migrating(name)
        })
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

fn extension(request: &BackendRequest<'_>) -> Result<Extension, BackendError> {
    let record = extension_record(request.subnet_file);
    Extension::new(request.config, request.uplink.clone(), record)
}

fn host_gw(request: &BackendRequest<'_>) -> Result<HostGw, BackendError> {
    let backend = HostGw::new(request.config, request.uplink.clone())?;
    let backend = backend.with_paths(request.paths.clone()).at(request.place);
    Ok(if request.blackhole { backend.with_blackholes() } else { backend })
}

fn udp(request: &BackendRequest<'_>) -> Result<Udp, BackendError> {
    let backend = Udp::new(request.config, request.uplink.clone())?;
    let backend =
        backend.with_paths(request.paths.clone()).with_masquerade(SelfTestNat).at(request.place);
    if request.starts {
        backend.begin_self_test();
    }
    Ok(if request.blackhole { backend.with_blackholes() } else { backend })
}

fn vxlan(request: &BackendRequest<'_>) -> Result<Vxlan, BackendError> {
    let backend = Vxlan::new(request.config, request.uplink.clone())?;
    let mut backend = backend.with_paths(request.paths.clone()).at(request.place);
    if let Some(node) = request.node {
        backend = backend.with_identity(node.clone());
    }
    Ok(if request.blackhole { backend.with_blackholes() } else { backend })
}

fn wireguard(request: &BackendRequest<'_>) -> Result<Wireguard, BackendError> {
    let beside = || request.subnet_file.with_file_name("wgkey");
    let key_file = request.wireguard_key_file.map_or_else(beside, Path::to_path_buf);
    let backend = Wireguard::new(request.config, request.uplink.clone(), key_file)?;
    let mut backend = backend.with_paths(request.paths.clone()).at(request.place);
    if request.wireguard_key_file.is_none() {
        backend = backend.with_new_keys();
    }
    if request.require_encryption {
        backend = backend.with_required_encryption();
    }
    Ok(if request.blackhole { backend.with_blackholes() } else { backend })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_does_not_encrypt_is_refused_where_encryption_is_required() {
        let backends = Backends::default();
        let of = |kind: &str| {
            let json = format!(
                r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48","Backend":{{"Type":"{kind}"}}}}"#
            );
            backends.tunnels(&json.parse().unwrap())
        };
        for kind in NAMES {
            let devices: Vec<_> = of(kind).unwrap().into_values().collect();
            assert_eq!(devices, ["flannel-wg+", "flannel-wg+"], "those of either name");
        }
        for kind in ["alloc", "extension", "host-gw", "udp", "vxlan"] {
            let error = of(kind).unwrap_err().to_string();
            let words = ["does not encrypt", "configure wireguard", "--require-encryption"];
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
