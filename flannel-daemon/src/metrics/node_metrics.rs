//! Numbers of the node, its store and its data path.

use std::{borrow::Cow, collections::BTreeSet, time::SystemTime};

use flannel_core::{Cidr, NetworkConfig, Subnet, SubnetRange, SyncReport, Totals};
use flannel_firewall::FIREWALL;

use super::{Metric, Sample, count, counter, each, escaped, of_firewall, one, some, switch};

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "flannel_info",
        kind: "gauge",
        help: "1, with the version, the backend and the node's name.",
        samples: |it| {
            it.node.as_ref().map_or_else(Vec::new, |node| {
                let backend = it.status.config.as_ref().map_or("", |it| it.backend().kind());
                let labels = format!(
                    "{{version=\"{}\",backend=\"{}\",node=\"{}\"}}",
                    env!("CARGO_PKG_VERSION"),
                    escaped(backend),
                    escaped(node.as_str())
                );
                vec![Sample(labels, 1.0)]
            })
        },
    },
    Metric {
        name: "flannel_ready",
        kind: "gauge",
        help: "Whether pods can be served: 1 if /readyz says so.",
        samples: |it| switch(it.ready),
    },
    Metric {
        name: "flannel_lease_held",
        kind: "gauge",
        help: "Whether this node holds a lease that cannot be somebody else's.",
        samples: |it| switch(it.status.trusts_lease()),
    },
    Metric {
        name: "flannel_lease_remaining_seconds",
        kind: "gauge",
        help: "How long the lease is good for without another renewal; absent if it does not expire.",
        samples: |it| some(it.remaining.map(|left| left.as_secs_f64())),
    },
    Metric {
        name: "flannel_mtu_bytes",
        kind: "gauge",
        help: "The largest packet that a pod may send.",
        samples: |it| some(it.status.mtu.map(f64::from)),
    },
    Metric {
        name: "flannel_peers",
        kind: "gauge",
        help: "Other nodes with a lease; absent until the store has said so.",
        samples: |it| some(it.status.peers.map(|peers| peers as f64)),
    },
    Metric {
        name: "flannel_network_subnets",
        kind: "gauge",
        help: "For how many nodes the network has subnets, in the family that has fewer.",
        samples: |it| {
            let held = it.status.lease.as_ref().map(|lease| lease.subnet);
            some(it.status.config.as_ref().and_then(|config| subnets(config, held)))
        },
    },
    Metric {
        name: "flannel_peers_unserved",
        kind: "gauge",
        help: "Peers that are not, or not fully, reachable after the last sync.",
        samples: |it| {
            some(it.status.last_sync.as_ref().map(|sync| sync.peers_with_problems() as f64))
        },
    },
    Metric {
        name: "flannel_leases_refused",
        kind: "gauge",
        help: "Leases that are not followed because they would harm this node.",
        samples: |it| count(it.status.refused.len() as u64),
    },
    Metric {
        name: "flannel_in_sync",
        kind: "gauge",
        help: "Whether the data path matched all peers after the last sync.",
        samples: |it| switch(it.status.in_sync),
    },
    Metric {
        name: "flannel_backend_info",
        kind: "gauge",
        help: "1 for each thing that the backend says of itself, such as what carries packets.",
        samples: |it| {
            let labels = |(name, value): (&Cow<'_, str>, &Cow<'_, str>)| {
                let (name, value) = (escaped(name), escaped(value));
                Sample(format!("{{property=\"{name}\",value=\"{value}\"}}"), 1.0)
            };
            it.backend.properties.iter().map(labels).collect()
        },
    },
    Metric {
        name: "flannel_backend_events_total",
        kind: "counter",
        help: "What the backend has counted, by its own names.",
        samples: |it| each("event", it.backend.counters.iter().map(|(name, count)| (name, *count))),
    },
    Metric {
        name: "flannel_firewall_exact",
        kind: "gauge",
        help: "Whether the rules of the firewall are as they should be; absent if the node keeps none.",
        samples: |it| {
            of_firewall(it, |it| switch(it.faults.iter().all(|fault| fault.object != FIREWALL)))
        },
    },
    Metric {
        name: "flannel_firewall_info",
        kind: "gauge",
        help: "1, with who keeps the rules: iptables or nftables; absent if nobody can.",
        samples: |it| {
            of_firewall(it, |it| match &*it.properties[FIREWALL] {
                "none" => Vec::new(),
                mode => each("mode", [(mode, 1)]),
            })
        },
    },
    Metric {
        name: "flannel_firewall_hindrances",
        kind: "gauge",
        help: "Settings of others that keep our rules from their effect; /readyz names them.",
        samples: |it| {
            let of_rules = |it: &SyncReport| {
                it.warnings.iter().filter(|warning| warning.object == FIREWALL).count()
            };
            of_firewall(it, |it| count(of_rules(it) as u64))
        },
    },
    Metric {
        name: "flannel_firewall_rule_writes_total",
        kind: "counter",
        help: "Rules of the firewall that were written, by kind of write.",
        samples: |it| {
            let rules = |what| counter(it, &format!("firewall_rules_{what}"));
            each("kind", [("added", rules("added")), ("removed", rules("removed"))])
        },
    },
    Metric {
        name: "flannel_firewall_program_runs_total",
        kind: "counter",
        help: "How often a program of iptables was run until the last sync, to look or to write.",
        samples: |it| count(counter(it, "firewall_program_runs")),
    },
    Metric {
        name: "flannel_faults",
        kind: "gauge",
        help: "1 for each thing that does not work now and is tried again.",
        samples: |it| {
            let activities: BTreeSet<_> =
                it.status.faults.iter().map(|fault| fault.activity).collect();
            let words = activities.into_iter().filter_map(|it| serde_json::to_value(it).ok());
            let words: Vec<_> = words.filter_map(|word| word.as_str().map(str::to_owned)).collect();
            each("activity", words.iter().map(|word| (word, 1)))
        },
    },
    Metric {
        name: "flannel_syncs_total",
        kind: "counter",
        help: "How often the data path was compared with the peers.",
        samples: |it| count(it.status.syncs),
    },
    Metric {
        name: "flannel_kernel_reads_total",
        kind: "counter",
        help: "Kernel objects that were listed.",
        samples: |it| count(it.status.totals.read),
    },
    Metric {
        name: "flannel_kernel_writes_total",
        kind: "counter",
        help: "Kernel objects that were written, by kind of write.",
        samples: |it| {
            let &Totals { added, replaced, removed, .. } = &it.status.totals;
            each("kind", [("added", added), ("removed", removed), ("replaced", replaced)])
        },
    },
    Metric {
        name: "flannel_drift_repaired_total",
        kind: "counter",
        help: "Changes by others that were undone, by kind of kernel object.",
        samples: |it| each("kind", it.status.repaired.iter().map(|(kind, count)| (kind, *count))),
    },
    Metric {
        name: "flannel_store_request_duration_seconds",
        kind: "summary",
        help: "How long the store took to answer, by operation.",
        samples: |it| {
            let operations = it.store.iter().flat_map(|(operation, times)| {
                let labels = format!("{{operation=\"{operation}\"}}");
                [
                    Sample(format!("_sum{labels}"), times.total.as_secs_f64()),
                    Sample(format!("_count{labels}"), times.calls as f64),
                ]
            });
            operations.collect()
        },
    },
    Metric {
        name: "flannel_store_request_failures_total",
        kind: "counter",
        help: "Requests that the store did not answer, or refused, by operation.",
        samples: |it| {
            each("operation", it.store.iter().map(|(name, times)| (name, times.failures)))
        },
    },
    Metric {
        name: "flannel_store_outage_seconds",
        kind: "gauge",
        help: "How long the store has not answered; 0 while it does.",
        samples: |it| one(it.offline.unwrap_or_default().as_secs_f64()),
    },
    Metric {
        name: "flannel_store_outages_total",
        kind: "counter",
        help: "How often the store stopped answering.",
        samples: |it| count(it.outages),
    },
];

pub(super) const PROCESS: &[Metric] = &[
    Metric {
        name: "process_start_time_seconds",
        kind: "gauge",
        help: "When this process was started, in seconds since 1970.",
        samples: |it| {
            let since = it.started.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            some(since.map(|since| since.as_secs_f64()))
        },
    },
    Metric {
        name: "process_resident_memory_bytes",
        kind: "gauge",
        help: "What this process keeps in memory.",
        samples: |it| some(it.resident.map(|bytes| bytes as f64)),
    },
];

/// For how many nodes there are subnets, if `held` is one of them: where a cluster chooses them, it also chooses how large they are.
pub(super) fn subnets(config: &NetworkConfig, held: Option<Subnet>) -> Option<f64> {
    fn count<C: Cidr>(range: Option<&SubnetRange<C>>, held: Option<C>) -> Option<f64> {
        let range = range?;
        let others = held.map(|held| held.prefix_len()).filter(|len| *len != range.subnet_len());
        Some(match others {
            None => range.count() as f64,
            Some(len) => 2_f64.powi(i32::from(len) - i32::from(range.network().prefix_len())),
        })
    }
    let ipv4 = count(config.ipv4(), held.and_then(|held| held.ipv4()));
    let ipv6 = count(config.ipv6(), held.and_then(|held| held.ipv6()));
    ipv4.into_iter().chain(ipv6).min_by(f64::total_cmp)
}
