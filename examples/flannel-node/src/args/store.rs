//! Which store to use.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use clap::Args;
use flannel_daemon::StoreOptions;
use flannel_store::{EtcdConfig, EtcdPassword};

/// Which store to use.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoreArgs {
    /// Where the leases live: file:FOLDER for all nodes of this machine, memory for a node on its own. Without it, etcd.
    #[arg(long, value_name = "STORE")]
    pub(crate) store: Option<StoreArg>,

    /// The client addresses of etcd's members.
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub(crate) etcd_endpoints: Vec<String>,

    /// What all keys of the network in etcd begin with.
    #[arg(long, value_name = "PREFIX", default_value = "/coreos.com/network")]
    pub(crate) etcd_prefix: String,

    /// The key of our certificate, to show to etcd.
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_keyfile: Option<PathBuf>,

    /// Our certificate, to show to etcd.
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_certfile: Option<PathBuf>,

    /// The certificates that etcd's has to be signed by; this alone is enough for TLS.
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_cafile: Option<PathBuf>,

    /// The user to log in to etcd as.
    #[arg(long, value_name = "USER")]
    pub(crate) etcd_username: Option<String>,

    /// That user's password; better given as FLANNELD_ETCD_PASSWORD, where other users do not see it.
    #[arg(long, value_name = "PASSWORD")]
    pub(crate) etcd_password: Option<EtcdPassword>,
}

impl StoreArgs {
    pub(crate) fn options(&self) -> StoreOptions {
        match &self.store {
            None => StoreOptions::etcd(self.etcd()),
            Some(StoreArg { name, location }) => {
                let (name, location) = (name.clone(), location.clone());
                StoreOptions { name, location, ..StoreOptions::etcd(self.etcd()) }
            }
        }
    }

    /// Whether no endpoint can use the files for TLS that were given. flanneld goes on without them unless it has both certificate
    /// and key.
    pub(super) fn tls_is_off(&self) -> bool {
        let has_pair = self.etcd_certfile.is_some() && self.etcd_keyfile.is_some();
        !has_pair && self.etcd_endpoints.iter().all(|endpoint| endpoint.starts_with("http://"))
    }

    /// How to reach etcd.
    pub(crate) fn etcd(&self) -> EtcdConfig {
        let file =
            |file: &Option<PathBuf>| file.clone().filter(|_| !self.tls_is_off()).map(Into::into);
        EtcdConfig {
            ca: file(&self.etcd_cafile),
            cert: file(&self.etcd_certfile),
            endpoints: self.etcd_endpoints.clone(),
            key: file(&self.etcd_keyfile),
            password: self.etcd_password.clone(),
            prefix: self.etcd_prefix.clone(),
            username: self.etcd_username.clone(),
        }
    }
}

/// Where the leases live: a kind of store, and what it is opened with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct StoreArg {
    pub(crate) name: String,
    pub(crate) location: String,
}

impl FromStr for StoreArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (name, location) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self { name: name.into(), location: location.into() })
    }
}
