//! A node's status for people: a plain function of the document.

use std::fmt::Write;

use serde_json::Value;

/// The page for `status`.
pub(crate) fn render(status: &Value) -> String {
    let mut page = String::new();
    let mut line = |name: &str, text: String| {
        writeln!(page, "{name:12} {text}").expect("strings take all");
    };
    let text = |key: &str| shown(&status[key]);
    line(
        "node",
        format!(
            "{} (process {}, version {}, since {})",
            text("node"),
            text("pid"),
            text("version"),
            text("started")
        ),
    );
    line("store", text("store"));
    let networks = ["Network", "IPv6Network"].map(|key| status["network"][key].as_str());
    let networks: Vec<_> = networks.into_iter().flatten().collect();
    line("network", format!("{}, backend {}", networks.join(" and "), text("backend")));
    let remaining = status["lease_remaining_seconds"].as_u64();
    let remaining = remaining.map_or_else(String::new, |left| format!(", good for {}", span(left)));
    match &status["lease"] {
        Value::Null => line("lease", "none".into()),
        lease => line(
            "lease",
            format!(
                "{} at {}{remaining}, MTU {}",
                shown(&lease["subnet"]),
                shown(&lease["address"]),
                text("mtu")
            ),
        ),
    }
    line("ready", if status["ready"] == true { "yes".into() } else { "no".into() });
    for missing in list(&status["missing"]) {
        line("  missing", shown(missing));
    }
    for note in list(&status["notes"]) {
        line("  note", shown(note));
    }
    let totals = &status["totals"];
    line(
        "syncs",
        format!(
            "{}; {} objects added, {} replaced, {} removed",
            text("syncs"),
            totals["added"],
            totals["replaced"],
            totals["removed"]
        ),
    );
    if let Value::Object(firewall) = &status["firewall"] {
        let counters = &totals["counters"];
        let faults = list(&firewall["faults"]).len();
        let state =
            if faults == 0 { "as it should be".to_owned() } else { format!("{faults} faults") };
        let (added, removed) =
            (&counters["firewall_rules_added"], &counters["firewall_rules_removed"]);
        let runs = counters["firewall_program_runs"].as_u64().filter(|runs| *runs > 0);
        let runs = runs.map_or_else(String::new, |runs| format!(", iptables run {runs} times"));
        let mode = shown(&firewall["mode"]);
        line("firewall", format!("{mode}, {state}; {added} rules added, {removed} removed{runs}"));
    }
    for (name, text) in super::udp::lines(&status["udp"]) {
        line(name, text);
    }
    let repaired = status["repaired"].as_object().into_iter().flatten();
    let repaired: Vec<_> = repaired.map(|(kind, count)| format!("{kind} {count}")).collect();
    if !repaired.is_empty() {
        line("repaired", repaired.join(", "));
    }
    if let Value::Object(probing) = &status["probing"] {
        let paths = probing["paths"].as_object().into_iter().flatten();
        let paths: Vec<_> = paths.filter(|(_, count)| **count != 0).collect();
        let words =
            |(state, count): (&String, &Value)| format!("{} {count}", state.replace('_', " "));
        let mut text: Vec<_> = paths.into_iter().map(words).collect();
        for family in list(&probing["software_checksums"]) {
            text.push(format!("{} checksums computed in software", shown(family)));
        }
        line("paths", text.join(", "));
        for fault in list(&probing["faults"]) {
            line("  fault", shown(fault));
        }
    }
    if let Value::String(error) = &status["last_error"] {
        line("last error", error.clone());
    }
    let peers = list(&status["peers"]);
    line(
        "peers",
        if status["peers"].is_null() { "not known yet".into() } else { peers.len().to_string() },
    );
    for peer in peers {
        let ways = ["ipv4", "ipv6"].map(|family| peer["transport"][family].as_str());
        let mut ways: Vec<_> = ways.into_iter().flatten().collect();
        ways.dedup();
        let carrier = peer["transport"]["carrier"].as_str();
        let carrier = carrier.map_or_else(String::new, |carrier| format!(" by {carrier}"));
        let path = path(&peer["path"]);
        let problem =
            peer["problem"].as_str().map_or_else(String::new, |problem| format!("  {problem}"));
        line(
            "",
            format!(
                "{:28} {:28} {} {}{carrier}{path}{problem}",
                shown(&peer["subnet"]),
                shown(&peer["address"]),
                shown(&peer["backend"]),
                ways.join(" and ")
            ),
        );
    }
    for refused in list(&status["refused"]) {
        line("refused", format!("{} {}", shown(&refused["peer"]), refused["fault"]));
    }
    let journal = list(&status["journal"]);
    if !journal.is_empty() {
        line("journal", String::new());
    }
    for entry in journal {
        line(
            "",
            format!(
                "{} {:8} {}",
                shown(&entry["at"]),
                shown(&entry["kind"]),
                shown(&entry["text"])
            ),
        );
    }
    page.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// What is wrong on the ways to a peer; nothing if that is nothing.
fn path(path: &Value) -> String {
    let mut text = String::new();
    for found in path.as_object().into_iter().flat_map(|families| families.values()) {
        if let Some(mtu) = found["mtu"].as_u64() {
            write!(text, "  path MTU {mtu}, {} needed", found["needed"]).expect("strings take all");
        }
        for layer in ["overlay", "underlay"] {
            if found[format!("{layer}_checksums")] == "corrupted" {
                write!(text, "  {layer} checksums corrupted").expect("strings take all");
            }
        }
    }
    text
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn span(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_shows_what_an_operator_looks_for() {
        let status = json!({
            "version": "1.2.3", "pid": 7, "started": "2026-01-02T03:04:05Z", "node": "n1", "store": "etcd at http://x:1",
            "network": {"Network": "10.3.0.0/16"}, "backend": "vxlan", "ready": false,
            "missing": ["subnet.env: not there"], "notes": [],
            "lease": {"subnet": "10.3.1.0-24", "address": "192.0.2.1", "backend": "vxlan"},
            "lease_remaining_seconds": 3661, "mtu": 1450, "last_error": "renew the lease: refused",
            "peers": [
                {"subnet": "10.3.2.0-24", "address": "192.0.2.2", "backend": "vxlan", "problem": null,
                 "transport": {"ipv4": "encapsulated", "ipv6": null, "carrier": null},
                 "path": {"ipv4": {"state": "less", "mtu": 1400, "needed": 1500, "overlay_checksums": "corrupted",
                  "underlay_checksums": "intact"}}},
                {"subnet": "10.3.4.0-24", "address": "192.0.2.4", "backend": "", "problem": null,
                 "transport": {"ipv4": "encapsulated", "ipv6": null, "carrier": "userspace"}},
                {"subnet": "10.3.3.0-24", "address": null, "backend": "udp", "problem": "it uses the backend \"udp\""},
            ],
            "probing": {"paths": {"enough": 0, "less": 1, "no_answer": 1}, "software_checksums": ["ipv4"],
             "faults": ["cannot use UDP port 8286 of 192.0.2.1: in use"]},
            "refused": [], "syncs": 4, "totals": {"added": 9, "replaced": 1, "removed": 0, "counters": {"firewall_rules_added": 8, "firewall_rules_removed": 2, "firewall_program_runs": 3}},
            "repaired": {"route": 2, "link": 1}, "firewall": {"mode": "iptables", "faults": []},
            "udp": {"engine": "ebpf", "sent": {"packets": 4, "bytes": 300}, "received": {"packets": 0, "bytes": 0}},
            "journal": [{"at": "2026-01-02T03:04:06.000Z", "kind": "repair", "text": "route 10.3.2.0/24 removed"}],
        });
        let expected = "\
node         n1 (process 7, version 1.2.3, since 2026-01-02T03:04:05Z)
store        etcd at http://x:1
network      10.3.0.0/16, backend vxlan
lease        10.3.1.0-24 at 192.0.2.1, good for 1h 1m 1s, MTU 1450
ready        no
  missing    subnet.env: not there
syncs        4; 9 objects added, 1 replaced, 0 removed
firewall     iptables, as it should be; 8 rules added, 2 removed, iptables run 3 times
engine       ebpf
traffic      sent 4 packets, 300 bytes; received 0 packets, 0 bytes
repaired     link 1, route 2
paths        less 1, no answer 1, ipv4 checksums computed in software
  fault      cannot use UDP port 8286 of 192.0.2.1: in use
last error   renew the lease: refused
peers        3
             10.3.2.0-24                  192.0.2.2                    vxlan encapsulated  path MTU 1400, 1500 needed  overlay checksums corrupted
             10.3.4.0-24                  192.0.2.4                     encapsulated by userspace
             10.3.3.0-24                  -                            udp   it uses the backend \"udp\"
journal
             2026-01-02T03:04:06.000Z repair   route 10.3.2.0/24 removed
";
        assert_eq!(render(&status), expected);
    }

    #[test]
    fn a_node_that_is_being_set_up_has_a_page_too() {
        let page = render(
            &json!({"pid": 7, "ready": false, "missing": ["start: cannot read the network config"]}),
        );
        assert!(
            page.contains("\nlease        none\n")
                && page.contains("\npeers        not known yet\n"),
            "{page}"
        );
    }
}
