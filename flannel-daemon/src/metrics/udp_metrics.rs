//! Numbers of the udp backend.

use flannel_backend_udp::{Stats, Traffic};

use super::{Metric, Sample, Snapshot, count, labelled};

fn of(it: &Snapshot, samples: impl Fn(&Stats) -> Vec<Sample>) -> Vec<Sample> {
    it.udp.as_ref().map_or_else(Vec::new, samples)
}

/// One number of both directions.
fn both(it: &Snapshot, number: fn(&Traffic) -> u64) -> Vec<Sample> {
    of(it, |stats| {
        let directions = [("received", stats.received), ("sent", stats.sent)];
        let sample = |(direction, traffic): (&str, Traffic)| {
            labelled("direction", direction, number(&traffic) as f64)
        };
        directions.map(sample).into()
    })
}

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "flannel_udp_engine",
        kind: "gauge",
        help: "1 for what carries the packets of the udp backend: ebpf or userspace.",
        samples: |it| {
            of(it, |stats| {
                let engine = stats.engine.as_ref();
                engine.map(|engine| labelled("engine", engine.name(), 1.0)).into_iter().collect()
            })
        },
    },
    Metric {
        name: "flannel_udp_feature",
        kind: "gauge",
        help: "Whether the udp backend uses a feature of the kernel, by feature.",
        samples: |it| {
            of(it, |stats| {
                let named = stats.engine.iter().flat_map(|engine| engine.features().named());
                named.map(|(name, on)| labelled("feature", name, u8::from(on).into())).collect()
            })
        },
    },
    Metric {
        name: "flannel_udp_packets_total",
        kind: "counter",
        help: "Packets that the udp backend carried, by direction.",
        samples: |it| both(it, |traffic| traffic.packets),
    },
    Metric {
        name: "flannel_udp_bytes_total",
        kind: "counter",
        help: "Bytes of the packets that the udp backend carried, without outer headers, by direction.",
        samples: |it| both(it, |traffic| traffic.bytes),
    },
    Metric {
        name: "flannel_udp_calls_total",
        kind: "counter",
        help: "How often threads of the udp backend had the kernel take packets, by direction.",
        samples: |it| both(it, |traffic| traffic.calls),
    },
    Metric {
        name: "flannel_udp_ebpf_packets_total",
        kind: "counter",
        help: "Packets that BPF programs carried, both ways; they are among flannel_udp_packets_total.",
        samples: |it| of(it, |stats| count(stats.by_ebpf)),
    },
    Metric {
        name: "flannel_udp_dropped_total",
        kind: "counter",
        help: "Packets that the udp backend dropped, by reason.",
        samples: |it| {
            of(it, |stats| {
                let drops = stats.drops();
                drops.map(|(why, count)| labelled("reason", why.name(), count as f64)).collect()
            })
        },
    },
    Metric {
        name: "flannel_udp_answers_total",
        kind: "counter",
        help: "Senders that were told by ICMP that their packet cannot be carried.",
        samples: |it| of(it, |stats| count(stats.answered)),
    },
];

#[cfg(test)]
pub(super) mod tests {
    use flannel_backend_udp::{Engine, Features};

    use super::*;

    pub(in super::super) fn stats() -> Stats {
        let mut features = Features::default();
        (features.workers, features.udp_gro) = (2, true);
        let mut stats = Stats::default();
        stats.engine = Some(Engine::Ebpf(features));
        (stats.sent.packets, stats.sent.bytes, stats.sent.calls) = (44, 65_000, 1);
        stats.received.packets = 7;
        stats.answered = 3;
        stats
    }

    #[test]
    fn packets_are_counted_by_direction_and_drops_by_reason() {
        let text = super::super::render(&Snapshot { udp: Some(stats()), ..Snapshot::default() });
        for line in [
            "flannel_udp_engine{engine=\"ebpf\"} 1",
            "flannel_udp_feature{feature=\"udp_gro\"} 1",
            "flannel_udp_feature{feature=\"tun_udp\"} 0",
            "flannel_udp_packets_total{direction=\"received\"} 7",
            "flannel_udp_packets_total{direction=\"sent\"} 44",
            "flannel_udp_bytes_total{direction=\"sent\"} 65000",
            "flannel_udp_calls_total{direction=\"sent\"} 1",
            "flannel_udp_ebpf_packets_total 0",
            "flannel_udp_dropped_total{reason=\"spoofed_source\"} 0",
            "flannel_udp_answers_total 3",
        ] {
            assert!(text.lines().any(|it| it == line), "no line {line:?} in:\n{text}");
        }
        let without = super::super::render(&Snapshot::default());
        assert!(!without.contains("flannel_udp"), "another backend has none of it:\n{without}");
    }
}
