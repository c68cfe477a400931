//! The eBPF engine on a real kernel, with real packets, alone and beside the userspace engine.
//!
//! These tests need more than a user namespace: nobody but root loads BPF programs.

#![expect(clippy::disallowed_methods, reason = "what administrators use is what has to be stood")]

#[path = "tun/contract.rs"]
mod contract;
#[path = "bpf/counts.rs"]
mod counts;
#[path = "tun/lab.rs"]
#[expect(dead_code, reason = "the tests of the userspace engine use all of it")]
mod lab;
#[path = "bpf/matrix.rs"]
mod matrix;
#[path = "bpf/nft.rs"]
mod nft;
#[path = "bpf/path.rs"]
mod path;
#[path = "tun/peers.rs"]
mod peers;
#[path = "tun/safety.rs"]
mod safety;
#[path = "bpf/self_test.rs"]
mod self_test;
#[path = "tun/support.rs"]
#[expect(dead_code, reason = "the tests of the userspace engine use all of it")]
mod support;
#[path = "tun/wire.rs"]
mod wire;
#[path = "bpf/world.rs"]
mod world;

/// What carries the packets of our nodes.
const ENGINE: &str = "ebpf";
