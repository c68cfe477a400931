//! A flannel node with everything around it, as a library.
//!
//! A [`Daemon`] is made of one value, [`DaemonOptions`], and of the [`Stores`] and [`Backends`] that it may choose from by name. It puts
//! store, backend, firewall and probe together, keeps the node's name, `subnet.env` and the status socket, and serves health and
//! metrics. Its parts are usable alone: [`explain`](explain::explain), [`teardown`](teardown::teardown), [`operate`], and a
//! [`DaemonHandle`] for what a running daemon knows.
//!
//! # Features
//!
//! * `etcd`: the store of that name. On by default.
//! * `kubernetes`: the store of that name, and [`kubectl`]. On by default.
//!
//! # Examples
//!
//! ```no_run
//! use flannel_daemon::{Daemon, DaemonOptions, StoreOptions};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = DaemonOptions {
//!     store: StoreOptions::file("/var/lib/leases"),
//!     network: Some(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#.parse()?),
//!     ..DaemonOptions::default()
//! };
//! let daemon = Daemon::new(options)?;
//! let handle = daemon.handle();
//! tokio::spawn(daemon.run_until(std::future::pending()));
//! println!("{}", handle.readiness());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod atomic_file;
mod backend_source;
mod backends;
pub mod cni_conf;
mod compose;
mod daemon;
pub mod docker_options;
mod error;
pub mod explain;
mod handle;
mod health_server;
mod host_lock;
mod journal;
mod key_rotation;
#[cfg(feature = "kubernetes")]
pub mod kubectl;
mod metrics;
mod node_id;
mod not_ready;
mod notices;
pub mod operate;
mod options;
mod orchestrator;
mod other_daemon;
mod path_monitor;
mod previous_lease;
mod readiness;
mod retry;
mod sandbox;
mod self_test_nat;
pub mod status;
mod status_socket;
mod store_metrics;
mod stores;
mod subnet_file;
mod subnet_publisher;
mod supervisor;
pub mod teardown;

use std::path::{Path, PathBuf};

pub use backends::{BackendRequest, Backends};
pub use daemon::Daemon;
pub use error::{DaemonError, FileError, InvalidOptions, OpenStoreError};
pub use flannel_backend::UplinkOptions;
pub use flannel_firewall::{FirewallOptions, Masquerade};
#[cfg(feature = "etcd")]
pub use flannel_store::EtcdConfig;
pub use handle::DaemonHandle;
pub use journal::{Entry, Kind};
pub use metrics::{MetricFamily, Metrics};
#[cfg(feature = "kubernetes")]
pub use options::KubernetesConfig;
pub use options::{DaemonOptions, StoreOptions};
pub use orchestrator::Orchestrator;
pub use path_monitor::path_status::{PathStatus, ProbeStatus};
pub use readiness::Readiness;
pub use status_socket::beside as status_socket_path;
pub use stores::{OpenStore, StorePlan, StoreRequest, Stores};
pub use subnet_file::read as read_subnet_file;

/// The folder that a file is in.
fn parent_folder(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    Some(if folder.as_os_str().is_empty() { ".".into() } else { folder.to_owned() })
}
