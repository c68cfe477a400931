//! Addresses that are lost when a machine restarts, after which nobody sends `DEL` for the pods of before.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use super::{
    calls::{Plugins, Site},
    write,
};
use crate::{args::Cni, report::Table, session::Session, unit::Unit};

pub(super) fn leaks(session: &Session, options: &Cni, sides: &[Plugins]) -> Result<Table> {
    let title = format!("{} restarts with {PODS} pods each, no DEL", options.restarts);
    let mut table = Table::new(title, &[(LEAKED, Unit::Count)]);
    for side in sides {
        let site = Site::new(session, side, 0)?;
        for restart in (1..=options.restarts).take_while(|_| !session.ended()) {
            if restart % 20 == 1 {
                session.progress(1, format!("restart {restart} with {}", side.name));
            }
            boot(&site, side, restart)?;
        }
        let folder = site.files().join("networks/cbr0");
        let names = fs::read_dir(folder).context("cannot list the addresses")?;
        let names = names.filter_map(|file| file.ok()?.file_name().into_string().ok());
        let taken = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).count();
        // Those of the pods since the last restart are in use.
        table.add(side.name, LEAKED, taken.saturating_sub(PODS) as f64);
    }
    Ok(table)
}

/// What a machine does between two restarts. The kernel has another boot ID for these processes, and nobody else.
fn boot(site: &Site<'_>, side: &Plugins, restart: u32) -> Result<()> {
    let id = site.files().join("boot_id");
    write(&id, &format!("00000000-0000-4000-8000-{restart:012x}\n"))?;
    let config = site.files().join("config");
    let keys = serde_json::json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "host-local",
        "ipam": {
            "type": "host-local", "dataDir": site.files().join("networks"),
            "ranges": [[{"subnet": "10.1.0.0/16"}]],
        },
    });
    write(&config, &keys.to_string())?;
    let script = format!(
        "mount --bind {id} /proc/sys/kernel/random/boot_id || exit 1
         for pod in $(seq {PODS}); do CNI_CONTAINERID=b{restart}-$pod {plugin} <{config} >/dev/null || exit 1; done",
        id = id.display(),
        plugin = side.folder.join("host-local").display(),
        config = config.display(),
    );
    #[expect(clippy::disallowed_methods, reason = "a boot ID for some processes alone")]
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    command.env("CNI_COMMAND", "ADD").env("CNI_NETNS", "/none").env("CNI_IFNAME", "eth0");
    command.env("CNI_PATH", &side.folder);
    let status = command.status().context("cannot run unshare")?;
    ensure!(status.success(), "the pods of restart {restart} were not connected: {status}");
    Ok(())
}

const PODS: usize = 20;
const LEAKED: &str = "addresses lost";
