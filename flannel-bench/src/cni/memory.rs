//! What the programs are in size, and in memory at the end of an `ADD`.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::time::Instant;

use super::calls::{Plugins, Site, send};
use super::pods::Pod;
use crate::{proc, report::Table, session::Session, unit::Unit};

pub(super) fn programs(session: &Session, sides: &[Plugins]) -> Result<Table> {
    let columns = [(SIZE, Unit::Bytes), (FLANNEL, Unit::Bytes), (BRIDGE, Unit::Bytes)];
    let mut table = Table::new("programs", &columns);
    for side in sides {
        table.add(side.name, SIZE, size(side)? as f64);
        let site = Site::new(session, side, 0)?;
        for (column, plugin) in [(FLANNEL, "flannel"), (BRIDGE, "bridge")] {
            table.add(side.name, column, peak(&site, plugin)? as f64);
        }
    }
    Ok(table)
}

/// Of all files together, each counted once.
fn size(side: &Plugins) -> Result<u64> {
    let files = ["bridge", "flannel", "host-local", "portmap", "loopback"];
    let files = files.map(|name| fs::canonicalize(side.folder.join(name)));
    let files: BTreeSet<_> = files.into_iter().flatten().collect();
    let sizes = files.iter().map(|file| fs::metadata(file).map(|it| it.len()));
    sizes.sum::<Result<u64, _>>().context("cannot look at a program")
}

/// The most memory that was resident in the plugin's own process, not in those that it runs. It is asked at the end: the plugin
/// cannot print its answer, because the pipe is full.
fn peak(site: &Site<'_>, plugin: &str) -> Result<u64> {
    let pod = Pod::new(format!("memory-{plugin}"))?;
    let mut config = site.flannel();
    if plugin == "bridge" {
        config["type"] = plugin.into();
        config["ipam"]["type"] = "host-local".into();
        config["ipam"]["ranges"] = serde_json::json!([[{"subnet": "10.1.0.0/16"}]]);
    }
    let config = config.to_string();
    let (mut reader, mut writer) = std::io::pipe().context("cannot make a pipe")?;
    let full = vec![b' '; PIPE_BYTES];
    writer.write_all(&full).context("cannot fill a pipe")?;
    let mut child = site
        .run(|| site.command(plugin, "ADD", &pod).stdout(writer).spawn())?
        .context("cannot run the plugin")?;
    send(&mut child, &config);
    let mut peak = 0;
    let mut since = Instant::now();
    while since.elapsed() < SETTLED {
        let now = proc::usage(child.id())?.peak;
        if now != peak {
            (peak, since) = (now, Instant::now());
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else runs meanwhile")]
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut printed = Vec::new();
    reader.read_to_end(&mut printed).context("cannot read the answer")?;
    let status = child.wait().context("cannot wait for the plugin")?;
    anyhow::ensure!(
        status.success(),
        "{plugin}: {status}: {}",
        String::from_utf8_lossy(&printed).trim()
    );
    Ok(peak)
}

/// What a pipe holds.
const PIPE_BYTES: usize = 65_536;
const SETTLED: Duration = Duration::from_millis(500);
const SIZE: &str = "size of all files";
const FLANNEL: &str = "peak of flannel";
const BRIDGE: &str = "peak of bridge";
