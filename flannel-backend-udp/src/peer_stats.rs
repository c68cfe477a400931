//! What became of the packets of each peer.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::verdict::DropReason;

/// What became of the packets to and from one peer, since a lease first had its address. Nodes behind one address are one peer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct PeerStats {
    /// Packets to it that were sent, as they are on the wire.
    pub packets_sent: u64,
    /// Their bytes, without the outer headers.
    pub bytes_sent: u64,
    /// Packets from it that the tunnel device took.
    pub packets_received: u64,
    /// Their bytes, without the outer headers.
    pub bytes_received: u64,
    /// Packets to it that were dropped, which were not sent. Reasons without any are left out.
    pub dropped_outbound: BTreeMap<DropReason, u64>,
    /// Packets from it that were dropped, which were not received.
    pub dropped_inbound: BTreeMap<DropReason, u64>,
}

/// Where a packet that was dropped was going.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

/// The counters of one peer. All workers add to them, once for each call to the kernel.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct PeerCounters {
    /// In the order of [`PeerStats`].
    traffic: [AtomicU64; 4],
    /// Most peers have none.
    drops: OnceLock<Box<[[AtomicU64; DropReason::ALL.len()]; 2]>>,
}

impl PeerStats {
    /// Counts this as well.
    pub(crate) fn add(&mut self, other: &Self) {
        self.packets_sent += other.packets_sent;
        self.bytes_sent += other.bytes_sent;
        self.packets_received += other.packets_received;
        self.bytes_received += other.bytes_received;
        for (sum, drops) in [
            (&mut self.dropped_outbound, &other.dropped_outbound),
            (&mut self.dropped_inbound, &other.dropped_inbound),
        ] {
            for (reason, count) in drops {
                *sum.entry(*reason).or_default() += count;
            }
        }
    }

    /// The same by name.
    pub(crate) fn report(&self) -> BTreeMap<Cow<'static, str>, u64> {
        let mut report = BTreeMap::from([
            (Cow::Borrowed("packets_sent"), self.packets_sent),
            (Cow::Borrowed("bytes_sent"), self.bytes_sent),
            (Cow::Borrowed("packets_received"), self.packets_received),
            (Cow::Borrowed("bytes_received"), self.bytes_received),
        ]);
        for (direction, drops) in
            [("outbound", &self.dropped_outbound), ("inbound", &self.dropped_inbound)]
        {
            report.extend(drops.iter().map(|(reason, count)| {
                (format!("dropped_{direction}_{}", reason.name()).into(), *count)
            }));
        }
        report
    }
}

impl PeerCounters {
    pub(crate) fn sent(&self, packets: usize, bytes: usize) {
        self.traffic[0].fetch_add(packets as u64, Ordering::Relaxed);
        self.traffic[1].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, packets: usize, bytes: usize) {
        self.traffic[2].fetch_add(packets as u64, Ordering::Relaxed);
        self.traffic[3].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, direction: Direction, reason: DropReason, packets: usize) {
        let drops = self.drops.get_or_init(Box::default);
        drops[direction as usize][reason as usize].fetch_add(packets as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> PeerStats {
        let [packets_sent, bytes_sent, packets_received, bytes_received] =
            self.traffic.each_ref().map(|count| count.load(Ordering::Relaxed));
        let dropped = |direction: Direction| {
            let drops = self.drops.get().into_iter().flat_map(|drops| &drops[direction as usize]);
            let drops = drops.map(|count| count.load(Ordering::Relaxed));
            DropReason::ALL.into_iter().zip(drops).filter(|(_, count)| *count > 0).collect()
        };
        PeerStats {
            packets_sent,
            bytes_sent,
            packets_received,
            bytes_received,
            dropped_outbound: dropped(Direction::Outbound),
            dropped_inbound: dropped(Direction::Inbound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_reported_by_name() {
        let counters = PeerCounters::default();
        counters.sent(44, 65_000);
        counters.received(2, 128);
        counters.dropped(Direction::Outbound, DropReason::TooBig, 3);
        counters.dropped(Direction::Inbound, DropReason::SpoofedSource, 1);
        let mut stats = counters.read();
        stats.add(&counters.read());
        let report: Vec<_> = stats.report().into_iter().collect();
        let expected = [
            ("bytes_received", 256),
            ("bytes_sent", 130_000),
            ("dropped_inbound_spoofed_source", 2),
            ("dropped_outbound_too_big", 6),
            ("packets_received", 4),
            ("packets_sent", 88),
        ];
        assert_eq!(report, expected.map(|(name, count)| (name.into(), count)));
    }
}
