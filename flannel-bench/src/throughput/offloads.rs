//! Taking offloads from all devices of a path, with ethtool.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use flannel_netlink::{Connection, Namespace, list_links};

use super::paths::Built;

/// Turns off whatever saves sender and receiver work on any device of hosts and pods.
pub(super) async fn turn_off(path: &Built) -> Result<()> {
    let hosts = path.hosts().iter().map(|host| host.namespace());
    for namespace in hosts.chain(path.pods.iter().map(|pod| pod.namespace())) {
        let mut connection = Connection::open(namespace)?;
        for link in list_links(&mut connection).await? {
            if !link.loopback {
                turn_off_device(namespace, &link.name)?;
            }
        }
    }
    Ok(())
}

fn turn_off_device(namespace: &Namespace, device: &str) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the kernel has no other way that is short")]
    let mut command = Command::new("ethtool");
    command.args(["-K", device]);
    for feature in FEATURES {
        command.args([feature, "off"]);
    }
    let output = namespace.run(|| command.output())?;
    let output = output.context("cannot start ethtool: install Debian's ethtool")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // A device that has not got one of them says so, and takes the others.
    let refused = said.lines().any(|line| !line.contains("fixed") && line.contains("Cannot"));
    ensure!(output.status.success() || !refused, "ethtool -K {device}: {}", said.trim());
    Ok(())
}

/// Segmentation and checksums in sending, joining in receiving.
const FEATURES: [&str; 4] = ["tx", "tso", "gso", "gro"];
