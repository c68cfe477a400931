//! Numbers to spread waits with.

use std::sync::atomic::{AtomicU64, Ordering};

use flannel_core::NodeId;

/// A sequence that depends on the node's name alone: nodes differ in it, and a simulation can be repeated.
#[derive(Debug)]
pub(crate) struct Jitter(AtomicU64);

impl Jitter {
    pub(crate) fn new(node: &NodeId) -> Self {
        Self(AtomicU64::new(node.spread() as u64))
    }

    /// `SplitMix64`'s next number.
    pub(crate) fn next(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
