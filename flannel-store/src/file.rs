//! Leases in a folder, shared by the processes of one machine.

use std::{path::Path, sync::Arc};

use flannel_core::{ConfigError, NetworkConfig, NodeId, StoreError};

use crate::{
    registry::RegistryError,
    registry_store::{LeaseOptions, RegistryStore, store_error},
};

mod file_registry;
mod files;
mod folder;
mod folder_watch;
#[cfg(feature = "testing")]
pub(crate) mod fuzzing;
mod inotify;
mod lease_file;
mod listing;
mod lock;

pub use file_registry::FileRegistry;

use folder::Folder;

/// One node's store in a folder that all nodes of a network on this machine share.
///
/// | path | what it holds |
/// | --- | --- |
/// | `config` | the network configuration, flannel's JSON |
/// | `subnets/KEY` | one lease; the name is flannel's subnet key, such as `10.5.1.0-24` |
/// | `lock` | nothing: whoever writes holds a lock on it, which the kernel takes back from a process that dies; do not remove it while nodes run |
/// | `revision` | the number of the last write; if it is lost it is counted anew from the leases |
///
/// The first line of a lease is flannel's lease JSON, byte for byte. The second is ours:
///
/// ```json
/// {"Node":"n1","Revision":7,"Expires":"2026-11-21T10:00:00Z"}
/// ```
///
/// A file with the first value alone, which may be spread over several lines, is a reservation: write one by hand and the
/// node with that `PublicIP` gets the subnet, for ever. Removing a file revokes the lease. Names that begin with a dot are
/// ignored. A file that cannot be read as a lease is reported once; it takes its own subnet and disturbs nobody else.
///
/// A write is durable and complete or has not happened, wherever a process or the machine stops. Changes reach the other
/// processes by inotify, so the folder must be on a local filesystem.
///
/// # Time
///
/// Leases expire by the wall clock, because it is what processes and restarts share. An expired lease stays in the folder
/// until somebody needs its subnet, and its node may renew it until then. If the clock steps forwards, leases expire early,
/// and come back as soon as their nodes notice, within a minute. If it steps backwards, leases last longer by as much. Neither
/// gives a subnet away that its node still renews in time, unless no other is left: then a node that comes within that minute
/// gets one whose lease looks expired, and the one that had it takes another.
///
/// # Runtime
///
/// Calls and watches need a tokio runtime with time and I/O enabled, and panic without.
pub type FileStore = RegistryStore<FileRegistry>;

/// Why a network cannot be set up in a folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The folder has another network already.
    #[error(
        "{place} holds another network, {present}, not {wanted}: use that one, or another folder"
    )]
    Differs {
        /// The configuration's path.
        place: String,
        /// What is there, as JSON.
        present: String,
        /// What was asked for, as JSON.
        wanted: String,
    },
    /// The folder cannot be read or written.
    #[error("cannot set up the network in {place}")]
    Unavailable {
        /// The configuration's path.
        place: String,
        /// What came in between.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is a configuration already, and it cannot be used.
    #[error("the network config in {place} cannot be used: correct it, or use another folder")]
    Unusable {
        /// The configuration's path.
        place: String,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
}

impl FileStore {
    /// Opens the folder at `path`, making it if it is not there, as `node` uses it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Denied`] and [`StoreError::Unavailable`].
    pub async fn open(
        path: impl AsRef<Path>,
        node: NodeId,
        options: LeaseOptions,
    ) -> Result<Self, StoreError> {
        let registry = FileRegistry::open(path).await.map_err(store_error)?;
        Ok(Self::new(registry, node, options))
    }

    /// Sets up the network of `config` in the folder at `path`, making it if it is not there.
    ///
    /// Does nothing if the folder has this network already. Of several processes that do this at the same time with
    /// different configurations, one succeeds.
    ///
    /// # Errors
    ///
    /// [`InitError`]; the folder's network is then what it was.
    pub async fn init(path: impl AsRef<Path>, config: &NetworkConfig) -> Result<(), InitError> {
        let folder = Arc::new(Folder::new(path.as_ref()));
        let (wanted, place) = (config.clone(), folder.config_path().display().to_string());
        let unavailable = {
            let place = place.clone();
            |error: RegistryError| InitError::Unavailable { place, source: error.into() }
        };
        lock::blocking(&folder, Folder::create).await.map_err(unavailable.clone())?;
        let work = move |folder: &Folder| folder.init_config(&wanted);
        let present = match lock::exclusive(&folder, "set up the network", work).await {
            Ok(present) => present,
            Err(error) => return Err(unavailable(error)),
        };
        match present {
            None => Ok(()),
            Some(text) => {
                let present = text.parse::<NetworkConfig>();
                let present = present
                    .map_err(|source| InitError::Unusable { place: place.clone(), source })?;
                let (present, wanted) = (json(&present), json(config));
                if present == wanted {
                    return Ok(());
                }
                Err(InitError::Differs {
                    place,
                    present: present.to_string(),
                    wanted: wanted.to_string(),
                })
            }
        }
    }
}

/// A configuration as a value in which spelling makes no difference.
fn json(config: &NetworkConfig) -> serde_json::Value {
    let text = serde_json::to_string(config).expect("a network config is valid JSON");
    serde_json::from_str(&text).expect("it was just printed")
}
