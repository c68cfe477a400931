//! What became of packets.

use std::sync::atomic::{AtomicU64, Ordering};

/// Each count with its name in the report.
macro_rules! counts {
    ($($(#[$doc:meta])* $count:ident => $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub(crate) enum Count {
            $($(#[$doc])* $count,)*
        }

        /// The names of all counts.
        pub(crate) const NAMES: [&str; [$($name),*].len()] = [$($name),*];
    };
}

counts! {
    BytesReceived => "bytes_received",
    BytesSent => "bytes_sent",
    CallsReceived => "calls_received",
    CallsSent => "calls_sent",
    /// Handshakes that were answered with a cookie, because there were too many.
    CookiesSent => "cookies_sent",
    /// The kernel's description of a large packet does not fit it.
    BadOffload => "dropped_bad_offload",
    /// It is not by who it says it is by.
    Forged => "dropped_forged",
    /// It is none of WireGuard's messages, or carries no packet.
    Malformed => "dropped_malformed",
    /// No peer has its destination.
    NoRoute => "dropped_no_route",
    /// There is no session of that index.
    NoSession => "dropped_no_session",
    /// It came before.
    Replayed => "dropped_replayed",
    /// The kernel did not take the datagram.
    SendFailed => "dropped_send_failed",
    /// Its source is not among the addresses of the peer that sent it.
    SpoofedSource => "dropped_spoofed_source",
    /// It begins a handshake and is from nobody that is known.
    UnknownPeer => "dropped_unknown_peer",
    /// The kernel did not take the packet from the device.
    WriteFailed => "dropped_write_failed",
    /// Messages of handshakes that were from who they say they are from.
    Handshakes => "handshakes_received",
    PacketsReceived => "packets_received",
    PacketsSent => "packets_sent",
}

/// What one thread counts.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Counters([AtomicU64; NAMES.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    pub(crate) fn add(&self, count: Count, n: usize) {
        self.0[count as usize].fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn values(&self) -> [u64; NAMES.len()] {
        std::array::from_fn(|n| self.0[n].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_in_the_order_of_their_names() {
        assert!(NAMES.is_sorted());
        let counters = Counters::default();
        counters.add(Count::PacketsSent, 44);
        counters.add(Count::PacketsSent, 1);
        let named: Vec<_> = NAMES.into_iter().zip(counters.values()).collect();
        assert!(named.contains(&("packets_sent", 45)) && named.contains(&("dropped_forged", 0)));
    }
}
