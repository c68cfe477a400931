//! Which store to use.

use std::{fmt, path::PathBuf};

use clap::Args;
use flannel_store::{EtcdConfig, EtcdPassword};

/// Which store to use.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoreArgs {
    /// Where the leases live: file:FOLDER for all nodes of this machine, memory for a node on its own. Without it, etcd.
    #[arg(long, value_name = "STORE", value_parser = parse_store)]
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

impl fmt::Display for StoreArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.store {
            Some(StoreArg::File(path)) => write!(f, "file:{}", path.display()),
            Some(StoreArg::Memory) => f.write_str("memory"),
            // Some endpoints have a password in them.
            None => write!(
                f,
                "etcd, {} endpoints, under {}",
                self.etcd_endpoints.len(),
                self.etcd_prefix
            ),
        }
    }
}

impl StoreArgs {
    /// How to reach etcd.
    pub(crate) fn etcd(&self) -> EtcdConfig {
        EtcdConfig {
            ca_file: self.etcd_cafile.clone(),
            cert_file: self.etcd_certfile.clone(),
            endpoints: self.etcd_endpoints.clone(),
            key_file: self.etcd_keyfile.clone(),
            password: self.etcd_password.clone(),
            prefix: self.etcd_prefix.clone(),
            username: self.etcd_username.clone(),
        }
    }
}

/// Where the leases live.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum StoreArg {
    File(PathBuf),
    Memory,
}

fn parse_store(text: &str) -> Result<StoreArg, String> {
    match text.split_once(':') {
        None if text == "memory" => Ok(StoreArg::Memory),
        Some(("file", path)) if !path.is_empty() => Ok(StoreArg::File(path.into())),
        _ => Err("expected file:FOLDER or memory".into()),
    }
}
