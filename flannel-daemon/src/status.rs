//! What a node that runs says of itself.

mod page;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io::{self, Read, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use flannel_core::{
    BackendReport, Fault, Lease, NetworkConfig, NodeId, PeerProblem, Status, Subnet, SyncReport,
    Totals, Transport,
};
use flannel_firewall::FIREWALL;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::{
    handle::DaemonHandle,
    journal::Entry,
    path_monitor::path_status::{self, PathStatus, ProbeStatus},
    readiness::Readiness,
};

/// All that operators may want to know of a node. [`fmt::Display`](std::fmt::Display) prints it as a page for people.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StatusDocument {
    /// The version of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When it was started, as in RFC 3339.
    pub started: String,
    /// The node's name; `None` until there is a node.
    pub node: Option<NodeId>,
    /// The store, for people.
    pub store: Option<String>,
    /// The network's configuration.
    pub network: Option<NetworkConfig>,
    /// The backend's name.
    pub backend: Option<String>,
    /// The file that tells others about the node's subnet.
    pub subnet_file: PathBuf,
    /// Whether pods can be served.
    pub ready: bool,
    /// What is missing, and what is worth knowing.
    #[serde(flatten)]
    pub readiness: Readiness,
    /// The lease that is held.
    pub lease: Option<LeaseStatus>,
    /// How long the lease is good for without another renewal, seconds; `None` if it does not expire.
    pub lease_remaining_seconds: Option<u64>,
    /// The largest packet that a pod may send, bytes.
    pub mtu: Option<u32>,
    /// What does not work right now.
    pub faults: Vec<Fault>,
    /// The latest fault, kept after it is over.
    pub last_error: Option<String>,
    /// The peers; `None` until the store has said who they are.
    pub peers: Option<Vec<PeerStatus>>,
    /// Leases that are not followed because they would harm this node.
    pub refused: Vec<PeerProblem>,
    /// What is known of the paths to peers; `None` if they are not asked.
    pub probing: Option<ProbeStatus>,
    /// How many syncs there were.
    pub syncs: u64,
    /// What all of them did.
    pub totals: Totals,
    /// How many changes by others were undone, by kind of object.
    pub repaired: BTreeMap<String, u64>,
    /// What the last sync did.
    pub last_sync: Option<SyncReport>,
    /// Who keeps the rules, and what is wrong with them; `None` if the node keeps none.
    pub firewall: Option<FirewallStatus>,
    /// What the backend says of itself now, in its own words.
    pub backend_report: BackendReport,
    /// The last things that happened, oldest first.
    pub journal: Vec<Entry>,
}

/// A lease in short.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The node's addresses.
    pub subnet: Subnet,
    /// Where the node is reached.
    pub address: Option<IpAddr>,
    /// Its backend, as published.
    pub backend: String,
}

/// A peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its lease.
    #[serde(flatten)]
    pub lease: LeaseStatus,
    /// How packets reach it; `None` if that is not known.
    pub transport: Option<Transport>,
    /// What is known of the paths to it, by family: `ipv4` or `ipv6`.
    pub path: Option<BTreeMap<String, PathStatus>>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// The rules that a node keeps.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FirewallStatus {
    /// Who keeps them.
    pub mode: String,
    /// What could not be done.
    pub faults: Vec<String>,
    /// What of others keeps them from their effect.
    pub notes: Vec<String>,
}

/// The document of a daemon as it is now.
pub(crate) async fn document(daemon: &DaemonHandle) -> StatusDocument {
    let (facts, status) = (daemon.facts(), daemon.status().unwrap_or_default());
    let readiness = daemon.readiness();
    let remaining =
        status.trusted_until.map(|until| until.saturating_duration_since(Instant::now()));
    let peers = peers(daemon, &status).await;
    let backend_report = facts.as_ref().map(|facts| facts.backend.report());
    let backend = status.config.as_ref().map(|config| config.backend().kind().to_owned());
    let repaired = status.repaired.iter().map(|(kind, count)| (kind.to_string(), *count));
    StatusDocument {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started: humantime::format_rfc3339_seconds(daemon.started()).to_string(),
        backend_report: backend_report.unwrap_or_default(),
        node: facts.as_ref().map(|facts| facts.id.clone()),
        store: facts.as_ref().map(|facts| facts.store.clone()),
        backend,
        network: status.config.map(|config| config.without_secrets()),
        subnet_file: daemon.subnet_file().to_owned(),
        ready: readiness.is_ready(),
        readiness,
        lease: status.lease.as_ref().map(LeaseStatus::of),
        lease_remaining_seconds: remaining.map(|left| left.as_secs()),
        mtu: status.mtu,
        peers,
        probing: daemon.probes().map(|probed| path_status::whole(&probed)),
        syncs: status.syncs,
        repaired: repaired.collect(),
        firewall: status.last_sync.as_ref().and_then(FirewallStatus::of),
        faults: status.faults,
        last_error: status.last_error,
        refused: status.refused,
        totals: status.totals,
        last_sync: status.last_sync,
        journal: daemon.journal().entries().cloned().collect(),
    }
}

/// The peers with what is wrong with them; nothing until the store has said who they are.
async fn peers(daemon: &DaemonHandle, status: &Status) -> Option<Vec<PeerStatus>> {
    let handle = daemon.node().filter(|_| status.peers.is_some())?;
    let peers = timeout(DEADLINE, handle.peers()).await.ok()??;
    // Waits for a sync under way, and is left out if that takes long.
    let transports =
        timeout(DEADLINE, handle.transports()).await.ok().flatten().unwrap_or_default();
    let transports: BTreeMap<_, _> = transports.into_iter().collect();
    let probed = daemon.probes();
    let problems = status.last_sync.as_ref().map_or(&[][..], |sync| &sync.problems);
    let described = peers.iter().map(|peer| {
        let problems = problems.iter().filter(|problem| problem.peer == peer.subnet);
        let problems: Vec<_> = problems.map(|problem| problem.fault.to_string()).collect();
        PeerStatus {
            lease: LeaseStatus::of(peer),
            transport: transports.get(&peer.subnet).cloned(),
            path: probed.as_ref().map(|probed| path_status::of_peer(probed, &peer.subnet)),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        }
    });
    Some(described.collect())
}

impl LeaseStatus {
    fn of(lease: &Lease) -> Self {
        let (address, backend) = (lease.attrs.address(), lease.attrs.backend_type.to_string());
        Self { subnet: lease.subnet, address, backend }
    }
}

impl FirewallStatus {
    fn of(report: &SyncReport) -> Option<Self> {
        let faults = report.faults.iter().filter(|fault| fault.object == FIREWALL);
        let warnings = report.warnings.iter().filter(|warning| warning.object == FIREWALL);
        Some(Self {
            mode: report.properties.get(FIREWALL)?.to_string(),
            faults: faults.map(ToString::to_string).collect(),
            notes: warnings.map(|warning| warning.text.to_string()).collect(),
        })
    }
}

/// Asks the node whose socket is at `path` for its status.
///
/// # Errors
///
/// [`StatusError`] if no node answers there, or one of another version that says something else.
pub fn ask(path: &Path) -> Result<StatusDocument, StatusError> {
    let answer = exchange(path)
        .map_err(|source| StatusError::NoAnswer { socket: path.to_owned(), source })?;
    let unlike = |source| StatusError::Unlike { socket: path.to_owned(), source };
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => {
            serde_json::from_str(body).map_err(|error| unlike(Some(error)))
        }
        _ => Err(unlike(None)),
    }
}

/// Why a node's status cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// Nobody is there.
    #[error("no node answers on {}: is one running with that subnet file?", socket.display())]
    NoAnswer {
        /// Where it was asked.
        socket: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Who is there says something else.
    #[error("the answer on {} is no status document: ask with the version of the node", socket.display())]
    Unlike {
        /// Where it was asked.
        socket: PathBuf,
        /// What cannot be read, if it is JSON at all.
        #[source]
        source: Option<serde_json::Error>,
    },
}

fn exchange(path: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(3 * DEADLINE))?;
    // HTTP 1.0 ends with the connection.
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// How long the node's loop may take to tell its peers.
const DEADLINE: Duration = Duration::from_secs(2);
