//! What an embedder can read about the data path.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use flannel_core::BackendReport;

use crate::{
    bpf::Counts,
    peer_stats::PeerStats,
    self_test::{SelfTest, SelfTestError},
    verdict::DropReason,
};

/// What carries packets, how, and what became of them since the backend was made.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// What carries packets now; `None` before the first sync.
    pub engine: Option<Engine>,
    /// Why BPF programs do not carry packets although they might; `None` if they do or were never tried.
    pub ebpf_refused: Option<String>,
    /// What came of the self-test of BPF programs; `None` if it has not ended, or nobody needs it.
    pub self_test: Option<Result<SelfTest, SelfTestError>>,
    /// Packets that BPF programs have carried, both ways. They are in `sent` and `received` as well.
    pub by_ebpf: u64,
    /// Packets from pods to peers.
    pub sent: Traffic,
    /// Packets from peers to pods.
    pub received: Traffic,
    /// Senders that were told that their packet cannot be carried.
    pub answered: u64,
    /// What became of the packets of each peer there is, by its address.
    pub peers: BTreeMap<IpAddr, PeerStats>,
    drops: [u64; DropReason::ALL.len()],
}

/// What carries packets.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Engine {
    /// BPF programs in the kernel; what is unusual takes threads of this process, with these features of the kernel.
    Ebpf(Features),
    /// Threads of this process, with these features of the kernel.
    Userspace(Features),
}

impl Engine {
    /// Its name for metrics, which is that of the option: `ebpf` or `userspace`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ebpf(_) => EBPF,
            Self::Userspace(_) => USERSPACE,
        }
    }

    /// Which features of the kernel the userspace engine uses, for all packets or for unusual ones.
    pub const fn features(&self) -> &Features {
        match self {
            Self::Ebpf(features) | Self::Userspace(features) => features,
        }
    }
}

pub(crate) const EBPF: &str = "ebpf";
pub(crate) const USERSPACE: &str = "userspace";

/// Which features of the kernel the userspace engine uses. Without one it works all the same, slower.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Features {
    /// Threads, each with its own queue of the device.
    pub workers: usize,
    /// Large TCP packets pass the device as one.
    pub tun_tcp: bool,
    /// Large UDP packets pass the device as one (Linux 6.2).
    pub tun_udp: bool,
    /// Datagrams to one peer leave as one (`UDP_SEGMENT`, Linux 4.18).
    pub udp_segment: bool,
    /// Datagrams from one peer come as one (`UDP_GRO`, Linux 5.0).
    pub udp_gro: bool,
    /// Why something is not used.
    pub missing: Vec<String>,
}

impl Features {
    /// The features by name, and whether they are used.
    pub fn named(&self) -> [(&'static str, bool); 4] {
        [
            ("tun_tcp", self.tun_tcp),
            ("tun_udp", self.tun_udp),
            ("udp_gro", self.udp_gro),
            ("udp_segment", self.udp_segment),
        ]
    }
}

/// Packets in one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Traffic {
    /// Packets as they are on the wire.
    pub packets: u64,
    /// Their bytes, without the outer headers.
    pub bytes: u64,
    /// How often the kernel was asked to take some.
    pub calls: u64,
}

impl Stats {
    /// How many packets were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    pub(crate) fn add_ebpf(&mut self, counts: &Counts) {
        let PeerStats { packets_sent, bytes_sent, packets_received, bytes_received, .. } =
            counts.all;
        self.sent.packets += packets_sent;
        self.sent.bytes += bytes_sent;
        self.received.packets += packets_received;
        self.received.bytes += bytes_received;
        self.by_ebpf += packets_sent + packets_received;
        for (reason, drops) in counts.all.dropped_outbound.iter().chain(&counts.all.dropped_inbound)
        {
            self.drops[*reason as usize] += drops;
        }
        for (ip, peer) in &counts.peers {
            self.peers.entry(*ip).or_default().add(peer);
        }
    }

    /// All reasons with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.drops)
    }

    /// The same by name.
    pub(crate) fn report(&self) -> BackendReport {
        let mut report = BackendReport::default();
        if let Some(engine) = &self.engine {
            let features = engine.features();
            report.properties.insert("engine".into(), engine.name().into());
            report.properties.insert("workers".into(), features.workers.to_string().into());
            for (name, used) in features.named() {
                report.properties.insert(name.into(), if used { "used" } else { "unused" }.into());
            }
            if !features.missing.is_empty() {
                report.properties.insert("missing".into(), features.missing.join("; ").into());
            }
        }
        if let Some(reason) = &self.ebpf_refused {
            report.properties.insert("ebpf_refused".into(), reason.clone().into());
        }
        if let Some(self_test) = &self.self_test {
            let text = match self_test {
                Ok(passed) => passed.to_string(),
                Err(error) => error.to_string(),
            };
            report.properties.insert("self_test".into(), text.into());
        }
        let mut count = |name: &str, count| report.counters.insert(name.to_owned().into(), count);
        for (direction, traffic) in [("received", self.received), ("sent", self.sent)] {
            count(&format!("packets_{direction}"), traffic.packets);
            count(&format!("bytes_{direction}"), traffic.bytes);
            count(&format!("calls_{direction}"), traffic.calls);
        }
        count("packets_by_ebpf", self.by_ebpf);
        count("icmp_errors_sent", self.answered);
        for (reason, drops) in self.drops() {
            count(&format!("dropped_{}", reason.name()), drops);
        }
        report.peers = self.peers.iter().map(|(ip, peer)| (*ip, peer.report())).collect();
        report
    }
}

/// The counters of one worker, who alone writes them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) sent: TrafficCounters,
    pub(crate) received: TrafficCounters,
    pub(crate) answered: Counter,
    drops: [Counter; DropReason::ALL.len()],
}

#[derive(Debug, Default)]
pub(crate) struct TrafficCounters {
    packets: Counter,
    bytes: Counter,
    calls: Counter,
}

/// A number that one thread counts up and others read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        // There is one writer, so nothing is lost between the two.
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TrafficCounters {
    /// One call that took so many packets with so many bytes.
    pub(crate) fn add(&self, packets: usize, bytes: usize) {
        self.packets.add(packets as u64);
        self.bytes.add(bytes as u64);
        self.calls.add(1);
    }

    fn add_to(&self, traffic: &mut Traffic) {
        traffic.packets += self.packets.get();
        traffic.bytes += self.bytes.get();
        traffic.calls += self.calls.get();
    }
}

impl Counters {
    pub(crate) fn dropped(&self, reason: DropReason, packets: usize) {
        self.drops[reason as usize].add(packets as u64);
    }

    pub(crate) fn add_to(&self, stats: &mut Stats) {
        self.sent.add_to(&mut stats.sent);
        self.received.add_to(&mut stats.received);
        stats.answered += self.answered.get();
        for (sum, drops) in stats.drops.iter_mut().zip(&self.drops) {
            *sum += drops.get();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_workers_add_up() {
        let counters = [Counters::default(), Counters::default()];
        counters[0].sent.add(44, 65_000);
        counters[1].sent.add(1, 64);
        counters[1].dropped(DropReason::UnknownPeer, 1);
        counters[0].dropped(DropReason::SendFailed, 3);
        let mut stats = Stats::default();
        counters.iter().for_each(|counters| counters.add_to(&mut stats));
        assert_eq!(stats.sent, Traffic { packets: 45, bytes: 65_064, calls: 2 });
        assert_eq!(stats.received, Traffic::default());
        assert_eq!(stats.drops().map(|(_, n)| n).sum::<u64>(), 4);
        assert_eq!(stats.dropped(DropReason::SendFailed), 3);
    }

    #[test]
    fn everything_is_reported_by_name() {
        let mut features = Features::default();
        (features.workers, features.udp_gro) = (2, true);
        let mut stats = Stats::default();
        assert!(stats.report().properties.is_empty());
        stats.engine = Some(Engine::Userspace(features));
        (stats.sent.packets, stats.answered) = (44, 3);
        let report = stats.report();
        let property = |name: &str| report.properties[name].as_ref();
        assert_eq!([property("engine"), property("workers")], ["userspace", "2"]);
        assert_eq!([property("udp_gro"), property("tun_udp")], ["used", "unused"]);
        let counters = ["packets_sent", "icmp_errors_sent", "dropped_spoofed_source"];
        assert_eq!(counters.map(|name| report.counters[name]), [44, 3, 0]);
    }
}
