//! Numbers for Prometheus, in its text format. `docs/metrics.md` lists them; a test compares.

use std::{
    collections::BTreeMap,
    fmt, fs,
    time::{Duration, SystemTime},
};

use flannel_core::{BackendReport, NodeId, Status, SyncReport};
use flannel_firewall::FIREWALL;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{handle::DaemonHandle, path_monitor::Probed, store_metrics::Times};

mod node_metrics;
mod path_metrics;
#[cfg(test)]
mod tests;

/// A node's numbers at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    node: Option<NodeId>,
    ready: bool,
    status: Status,
    remaining: Option<Duration>,
    started: Option<SystemTime>,
    resident: Option<u64>,
    store: BTreeMap<&'static str, Times>,
    offline: Option<Duration>,
    outages: u64,
    backend: BackendReport,
    /// Of the ways to peers, if they are asked.
    probed: Option<Probed>,
}

/// All metrics of a node, in the order of docs/metrics.md. They print themselves in Prometheus' text format, version 0.0.4.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Metrics(pub Vec<MetricFamily>);

/// Numbers under one name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MetricFamily {
    /// The name.
    pub name: String,
    /// `counter`, `gauge` or `summary`.
    pub kind: String,
    /// What it says.
    pub help: String,
    /// The numbers: what follows the name in the text format, such as `{kind="added"}`, and the value.
    pub samples: Vec<(String, f64)>,
}

/// A family of numbers under one name.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: fn(&Snapshot) -> Vec<Sample>,
}

/// One number: what follows the name, and the value.
struct Sample(String, f64);

impl Snapshot {
    pub(crate) fn take(daemon: &DaemonHandle, at: SystemTime, now: Instant) -> Self {
        let status = daemon.status().unwrap_or_default();
        let journal = daemon.journal();
        let facts = daemon.facts();
        Self {
            backend: facts.as_ref().map(|facts| facts.backend.report()).unwrap_or_default(),
            node: facts.map(|facts| facts.id),
            ready: daemon.readiness().is_ready(),
            remaining: status.trusted_until.map(|until| until.saturating_duration_since(now)),
            started: Some(daemon.started().min(at)),
            resident: resident(),
            store: daemon.store_metrics().all(),
            offline: journal.offline(now),
            outages: journal.outages(),
            probed: daemon.probes(),
            status,
        }
    }
}

/// All that there is something to say of.
pub(crate) fn collect(snapshot: &Snapshot) -> Metrics {
    let families = all().map(|metric| MetricFamily {
        name: metric.name.into(),
        kind: metric.kind.into(),
        help: metric.help.into(),
        samples: (metric.samples)(snapshot).into_iter().map(|it| (it.0, it.1)).collect(),
    });
    Metrics(families.filter(|family| !family.samples.is_empty()).collect())
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for MetricFamily { name, kind, help, samples } in &self.0 {
            writeln!(f, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
            for (rest, value) in samples {
                writeln!(f, "{name}{rest} {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
fn render(snapshot: &Snapshot) -> String {
    collect(snapshot).to_string()
}

/// What this process keeps in memory, in bytes.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

fn one(value: f64) -> Vec<Sample> {
    vec![Sample(String::new(), value)]
}

fn switch(on: bool) -> Vec<Sample> {
    one(f64::from(u8::from(on)))
}

fn count(value: u64) -> Vec<Sample> {
    one(value as f64)
}

fn some(value: Option<f64>) -> Vec<Sample> {
    value.map_or_else(Vec::new, one)
}

/// A sample for each of `counts`, which are those of something by name.
fn each<N: AsRef<str>>(label: &str, counts: impl IntoIterator<Item = (N, u64)>) -> Vec<Sample> {
    let sample = |(name, count): (N, u64)| {
        Sample(format!("{{{label}=\"{}\"}}", escaped(name.as_ref())), count as f64)
    };
    counts.into_iter().map(sample).collect()
}

/// What the report of a data path with a firewall says; nothing if the node keeps none.
fn of_firewall(it: &Snapshot, samples: impl FnOnce(&SyncReport) -> Vec<Sample>) -> Vec<Sample> {
    let report = it.status.last_sync.as_ref().filter(|it| it.properties.contains_key(FIREWALL));
    report.map_or_else(Vec::new, samples)
}

/// What a backend has counted under `name`.
fn counter(it: &Snapshot, name: &str) -> u64 {
    it.status.totals.counters.get(name).copied().unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All there are, in the order of the page.
fn all() -> impl Iterator<Item = &'static Metric> {
    node_metrics::METRICS.iter().chain(path_metrics::METRICS).chain(node_metrics::PROCESS)
}
