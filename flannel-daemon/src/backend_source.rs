//! Makes the backends between which a node migrates, and keeps in a file which it has.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use flannel_backend::{Paths, UplinkFinder};
use flannel_core::{
    Backend, BackendError, BackendSource, MigrationRecord, NetworkConfig, NodeId, Place,
};
use flannel_netlink::Namespace;

use crate::{Backends, InvalidOptions, atomic_file, backends::BackendRequest, error::chain};

/// All that backends of one node are made of.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) backends: Backends,
    pub(crate) namespace: Namespace,
    pub(crate) uplink: UplinkFinder,
    pub(crate) node: Option<NodeId>,
    pub(crate) paths: Paths,
    pub(crate) blackhole: bool,
    pub(crate) require_encryption: bool,
    pub(crate) subnet_file: PathBuf,
    pub(crate) wireguard_key_file: Option<PathBuf>,
    /// Whether the node is about to start.
    pub(crate) starts: AtomicBool,
}

impl Source {
    /// What is made from now on is made in a node that runs.
    pub(crate) fn has_started(&self) {
        self.starts.store(false, Ordering::Relaxed);
    }
}

impl BackendSource for Source {
    fn build(
        &self,
        config: &NetworkConfig,
        place: Place,
    ) -> Result<Arc<dyn Backend>, BackendError> {
        let request = BackendRequest {
            config,
            namespace: &self.namespace,
            uplink: &self.uplink,
            node: self.node.as_ref(),
            paths: &self.paths,
            blackhole: self.blackhole,
            require_encryption: self.require_encryption,
            subnet_file: &self.subnet_file,
            wireguard_key_file: self.wireguard_key_file.as_deref(),
            starts: self.starts.load(Ordering::Relaxed),
            place,
        };
        self.backends.build(&request).map_err(|error| unsupported(config, &error))
    }

    /// No network that does not encrypt is moved to where that is required. One from before the start is moved away from.
    fn admit(&self, config: &NetworkConfig) -> Result<(), BackendError> {
        let admitted = match self.require_encryption {
            true => self.backends.tunnels(config).map(drop),
            false => Ok(()),
        };
        admitted.map_err(|error| unsupported(config, &error))
    }

    fn remember(&self, record: &MigrationRecord) -> Result<(), BackendError> {
        let json = serde_json::to_string(record).expect("a record is valid JSON");
        if fs::read_to_string(file(&self.subnet_file)).is_ok_and(|before| before == json) {
            return Ok(());
        }
        // The options of a backend may have secrets among them.
        atomic_file::write_private(&file(&self.subnet_file), &json).map_err(|error| {
            BackendError::Kernel { operation: "remember the backend".into(), source: error.into() }
        })
    }

    fn recall(&self) -> Option<MigrationRecord> {
        recall(&self.subnet_file)
    }
}

fn unsupported(config: &NetworkConfig, error: &InvalidOptions) -> BackendError {
    BackendError::Unsupported { backend: config.backend().kind().into(), reason: chain(error) }
}

/// Where it is kept: beside the subnet file, which does not outlive a reboot either.
pub(crate) fn file(subnet_file: &Path) -> PathBuf {
    subnet_file.with_extension("backend.json")
}

/// The configurations of the backends that the node had which wrote the subnet file.
pub(crate) fn recalled(subnet_file: &Path) -> impl Iterator<Item = NetworkConfig> + use<> {
    let record = recall(subnet_file).into_iter();
    record.flat_map(|it| [Some(it.base), it.beside]).flatten().map(|recorded| recorded.config)
}

/// What the node that wrote the subnet file has kept.
pub(crate) fn recall(subnet_file: &Path) -> Option<MigrationRecord> {
    serde_json::from_str(&fs::read_to_string(file(subnet_file)).ok()?).ok()
}
