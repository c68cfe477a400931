//! Hosts whose nodes run commands.

use std::{fs, path::Path, path::PathBuf, sync::Arc, time::Duration};

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_extension::Extension;
use flannel_core::{Backend, NetworkConfig};
use flannel_testbed::Host;
use tempfile::TempDir;

pub(crate) fn extension(host: &Host, config: &NetworkConfig, state_file: PathBuf) -> Extension {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    let finder = UplinkFinder::new(host.namespace(), config, &options).unwrap();
    Extension::new(config, finder, state_file).unwrap()
}

/// A world in which the nodes run these commands, and the folder of their records.
pub(crate) async fn world(
    families: &str,
    backend: &str,
) -> KernelWorld<impl Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + use<>> {
    let folder = tempfile::tempdir().unwrap();
    let make = move |host: &Host, config: &NetworkConfig| -> Arc<dyn Backend> {
        Arc::new(extension(host, config, record(&folder, host)))
    };
    let config = format!(r#"{{{families},"Backend":{{"Type":"extension",{backend}}}}}"#);
    // Commands take as long as the machine is busy.
    KernelWorld::new(&config, make).await.with_repair_time(Duration::from_secs(20))
}

pub(crate) fn record(folder: &TempDir, host: &Host) -> PathBuf {
    folder.path().join(host.name())
}

/// The lines of a file that commands append to; none if they have not.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

pub(crate) const IPV4: &str = r#""Network":"10.244.0.0/16""#;
pub(crate) const DUAL: &str =
    r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#;
