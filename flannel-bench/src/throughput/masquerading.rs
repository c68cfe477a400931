//! Translating the sources of one host's packets, with nft.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use flannel_testbed::Host;

/// Gives packets of the host's pods the address of the device that they leave on, wherever they go.
pub(super) fn turn_on(host: &Host) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "it is what administrators use")]
    let mut command = Command::new("nft");
    command.arg(RULES);
    let output = host.namespace().run(move || command.output())?;
    let output = output.context("cannot run nft (apt-get install nftables)")?;
    let says = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cannot masquerade on {}: {says}", host.name());
    Ok(())
}

/// Packets that are forwarded have come in by a device.
const RULES: &str = "table inet bench { chain c { type nat hook postrouting priority srcnat; iif != 0 masquerade; }; }";
