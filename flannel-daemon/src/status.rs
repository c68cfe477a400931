//! What a node that runs says of itself.

use std::{
    collections::BTreeMap,
    io::{Read, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Result, bail};
use flannel_core::{Lease, Status, SyncReport};
use flannel_firewall::FIREWALL;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{handle::DaemonHandle, path_monitor::Shown, udp_status};

/// All that operators may want to know of a node, as JSON.
pub(crate) async fn document(daemon: &DaemonHandle) -> Value {
    let (facts, status) = (daemon.facts(), daemon.status().unwrap_or_default());
    let readiness = daemon.readiness();
    let journal = daemon.journal();
    let remaining =
        status.trusted_until.map(|until| until.saturating_duration_since(Instant::now()));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "started": humantime::format_rfc3339_seconds(daemon.started()).to_string(),
        "node": facts.as_ref().map(|facts| facts.id.as_str()),
        "store": facts.as_ref().map(|facts| &facts.store),
        "network": facts.as_ref().map(|facts| &facts.config),
        "backend": facts.as_ref().map(|facts| facts.config.backend().kind()),
        "subnet_file": daemon.subnet_file(),
        "ready": readiness.is_ready(),
        "missing": readiness.missing,
        "notes": readiness.notes,
        "lease": status.lease.as_ref().map(lease),
        "lease_remaining_seconds": remaining.map(|left| left.as_secs()),
        "mtu": status.mtu,
        "faults": status.faults,
        "last_error": status.last_error,
        "peers": peers(daemon, &status).await,
        "refused": status.refused,
        "probing": daemon.probes().map(|probed| Shown(&probed).whole()),
        "syncs": status.syncs,
        "totals": status.totals,
        "repaired": status.repaired,
        "last_sync": status.last_sync,
        "firewall": status.last_sync.as_ref().and_then(firewall),
        "udp": facts.as_ref().and_then(|facts| facts.udp.as_ref()).map(|udp| udp_status::document(&udp.stats())),
        "journal": journal.entries().collect::<Vec<_>>(),
    })
}

/// The peers with what is wrong with them; nothing until the store has said who they are.
async fn peers(daemon: &DaemonHandle, status: &Status) -> Option<Vec<Value>> {
    let handle = daemon.node().filter(|_| status.peers.is_some())?;
    let peers = timeout(PATIENCE, handle.peers()).await.ok()??;
    // Waits for a sync under way, and is left out if that takes long.
    let transports =
        timeout(PATIENCE, handle.transports()).await.ok().flatten().unwrap_or_default();
    let transports: BTreeMap<_, _> = transports.into_iter().collect();
    let probed = daemon.probes();
    let problems = status.last_sync.as_ref().map_or(&[][..], |sync| &sync.problems);
    let described = peers.iter().map(|peer| {
        let problems = problems.iter().filter(|problem| problem.peer == peer.subnet);
        let problems: Vec<_> = problems.map(|problem| problem.fault.to_string()).collect();
        let mut value = lease(peer);
        value["transport"] = json!(transports.get(&peer.subnet));
        value["path"] = json!(probed.as_ref().map(|probed| Shown(probed).peer(&peer.subnet)));
        value["problem"] = json!((!problems.is_empty()).then(|| problems.join("; ")));
        value
    });
    Some(described.collect())
}

/// Who keeps the rules, and what is wrong with them; nothing if the node keeps none.
fn firewall(report: &SyncReport) -> Option<Value> {
    let faults = report.faults.iter().filter(|fault| fault.object == FIREWALL);
    let warnings = report.warnings.iter().filter(|warning| warning.object == FIREWALL);
    Some(json!({
        "mode": report.properties.get(FIREWALL)?,
        "faults": faults.map(ToString::to_string).collect::<Vec<_>>(),
        "notes": warnings.map(|warning| &warning.text).collect::<Vec<_>>(),
    }))
}

fn lease(lease: &Lease) -> Value {
    json!({
        "subnet": lease.subnet.to_string(),
        "address": lease.attrs.address(),
        "backend": lease.attrs.backend_type,
    })
}

/// Asks the node whose socket is at `path` for its status, as JSON.
///
/// # Errors
///
/// If no node answers there.
pub fn ask(path: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(3 * PATIENCE))?;
    // HTTP 1.0 ends with the connection.
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => bail!("it answers something else"),
    }
}

/// How long the node's loop may take to tell its peers.
const PATIENCE: Duration = Duration::from_secs(2);
