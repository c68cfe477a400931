//! Random packets.

use proptest::prelude::*;

use super::packets::{tcp4, tcp6, udp4, udp6};

/// Bytes that are anything, often close to a packet.
pub fn packet() -> impl Strategy<Value = Vec<u8>> {
    let random = proptest::collection::vec(any::<u8>(), 0..200);
    let data = || proptest::collection::vec(any::<u8>(), 0..300);
    let packet = prop_oneof![
        data().prop_map(|data| udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, &data)),
        data().prop_map(|data| udp6("fd00:1::2", "fd00:2::3", 64, &data)),
        (any::<u32>(), any::<u8>(), data()).prop_map(|(at, flags, data)| tcp4(at, flags, &data)),
        (any::<u32>(), any::<u8>(), data()).prop_map(|(at, flags, data)| tcp6(at, flags, &data)),
    ];
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let changed = (packet, changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut packet, changes, cut, is_cut)| {
            for (at, value) in changes {
                // Mostly headers.
                let len = packet.len().min(64);
                packet[at.index(len)] = value;
            }
            if is_cut {
                packet.truncate(cut.index(packet.len()));
            }
            packet
        },
    );
    prop_oneof![random, changed]
}
