//! A node's status for people.

use std::{collections::BTreeMap, fmt, time::Duration};

use flannel_core::RoutingMode;

use super::{PeerStatus, StatusDocument};
use crate::path_monitor::path_status::{PathStatus, ProbeStatus};

impl fmt::Display for StatusDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line =
            |name: &str, text: &str| writeln!(f, "{}", format!("{name:12} {text}").trim_end());
        let Self { version, pid, started, totals, .. } = self;
        let node = shown(self.node.as_ref());
        line("node", &format!("{node} (process {pid}, version {version}, since {started})"))?;
        line("store", &shown(self.store.as_ref()))?;
        let network = self.network.as_ref();
        let blocks = [
            network.and_then(|it| it.ipv4()).map(|range| range.network().to_string()),
            network.and_then(|it| it.ipv6()).map(|range| range.network().to_string()),
        ];
        let blocks: Vec<_> = blocks.into_iter().flatten().collect();
        let backend = shown(self.backend.as_ref());
        line("network", &format!("{}, backend {backend}", blocks.join(" and ")))?;
        match &self.lease {
            None => line("lease", "none")?,
            Some(lease) => {
                let remaining = self.lease_remaining_seconds.map_or_else(String::new, |left| {
                    let left = humantime::format_duration(Duration::from_secs(left));
                    format!(", good for {left}")
                });
                let (address, mtu) = (shown(lease.address.as_ref()), shown(self.mtu.as_ref()));
                line("lease", &format!("{} at {address}{remaining}, MTU {mtu}", lease.subnet))?;
            }
        }
        line("ready", if self.ready { "yes" } else { "no" })?;
        for missing in &self.readiness.missing {
            line("  missing", missing)?;
        }
        for note in &self.readiness.notes {
            line("  note", note)?;
        }
        let syncs = format!(
            "{}; {} objects added, {} replaced, {} removed",
            self.syncs, totals.added, totals.replaced, totals.removed
        );
        line("syncs", &syncs)?;
        if let Some(firewall) = &self.firewall {
            let counter = |name: &str| totals.counters.get(name).copied().unwrap_or_default();
            let state = match firewall.faults.len() {
                0 => "as it should be".to_owned(),
                faults => format!("{faults} faults"),
            };
            let (added, removed) =
                (counter("firewall_rules_added"), counter("firewall_rules_removed"));
            let runs = match counter("firewall_program_runs") {
                0 => String::new(),
                runs => format!(", iptables run {runs} times"),
            };
            let mode = &firewall.mode;
            let text = format!("{mode}, {state}; {added} rules added, {removed} removed{runs}");
            line("firewall", &text)?;
        }
        for (name, value) in &self.backend_report.properties {
            line(name, value)?;
        }
        let counters = &self.backend_report.counters;
        let counters = counted(counters.iter().filter(|(_, count)| **count > 0));
        if !counters.is_empty() {
            line("counters", &counters)?;
        }
        if !self.repaired.is_empty() {
            line("repaired", &counted(&self.repaired))?;
        }
        if let Some(probing) = &self.probing {
            line("paths", &paths(probing))?;
            for fault in &probing.faults {
                line("  fault", fault)?;
            }
        }
        if let Some(error) = &self.last_error {
            line("last error", error)?;
        }
        let count = self.peers.as_ref().map(|peers| peers.len().to_string());
        line("peers", count.as_deref().unwrap_or("not known yet"))?;
        for peer in self.peers.iter().flatten() {
            line("", &of_peer(peer))?;
        }
        for refused in &self.refused {
            line("refused", &format!("{} {}", refused.peer, refused.fault))?;
        }
        if !self.journal.is_empty() {
            line("journal", "")?;
        }
        for entry in &self.journal {
            let at = humantime::format_rfc3339_millis(entry.at);
            line("", &format!("{at} {:8} {}", entry.kind.to_string(), entry.text))?;
        }
        Ok(())
    }
}

fn of_peer(peer: &PeerStatus) -> String {
    let mut ways = Vec::new();
    let mut carrier = String::new();
    if let Some(transport) = &peer.transport {
        let modes = [transport.ipv4, transport.ipv6].into_iter().flatten();
        ways.extend(modes.map(|mode| match mode {
            RoutingMode::Direct => "direct",
            _ => "encapsulated",
        }));
        ways.dedup();
        carrier = transport.carrier.as_ref().map_or_else(String::new, |it| format!(" by {it}"));
    }
    let found = peer.path.iter().flat_map(BTreeMap::values).map(of_path).collect::<String>();
    let problem = peer.problem.as_ref().map_or_else(String::new, |it| format!("  {it}"));
    let address = shown(peer.lease.address.as_ref());
    format!(
        "{:28} {address:28} {} {}{carrier}{found}{problem}",
        peer.lease.subnet.to_string(),
        peer.lease.backend,
        ways.join(" and ")
    )
}

/// What is wrong on the path to a peer; nothing if that is nothing.
fn of_path(path: &PathStatus) -> String {
    let mut text = String::new();
    if let Some(mtu) = path.mtu {
        text += &format!("  path MTU {mtu}, {} needed", path.needed);
    }
    for (layer, checksums) in
        [("overlay", &path.overlay_checksums), ("underlay", &path.underlay_checksums)]
    {
        if checksums == "corrupted" {
            text += &format!("  {layer} checksums corrupted");
        }
    }
    text
}

fn paths(probing: &ProbeStatus) -> String {
    let states = probing.paths.iter().filter(|(_, count)| **count > 0);
    let states = states.map(|(state, count)| format!("{} {count}", state.replace('_', " ")));
    let families = probing.software_checksums.iter();
    let families = families.map(|family| format!("{family} checksums computed in software"));
    states.chain(families).collect::<Vec<_>>().join(", ")
}

fn counted<'a>(counts: impl IntoIterator<Item = (impl fmt::Display + 'a, &'a u64)>) -> String {
    let words = counts.into_iter().map(|(name, count)| format!("{name} {count}"));
    words.collect::<Vec<_>>().join(", ")
}

fn shown(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "-".into(), ToString::to_string)
}
