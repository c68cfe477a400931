//! The eBPF engine on a real kernel, with real packets.
//!
//! These tests need more than a user namespace: nobody but root loads BPF programs.

#![expect(clippy::disallowed_methods, reason = "what administrators use is what has to be stood")]

#[path = "bpf/carry.rs"]
mod carry;
#[path = "bpf/contract.rs"]
mod contract;
#[path = "bpf/detour.rs"]
mod detour;
#[path = "bpf/figures.rs"]
mod figures;
#[path = "tun/lab.rs"]
#[expect(dead_code, reason = "the tests of the userspace engine use all of it")]
mod lab;
#[path = "bpf/lasting.rs"]
mod lasting;
#[path = "bpf/load.rs"]
mod load;
#[path = "bpf/paths.rs"]
mod paths;
#[path = "tun/plain.rs"]
mod plain;
#[path = "bpf/safety.rs"]
mod safety;
#[path = "tun/support.rs"]
#[expect(dead_code, reason = "the tests of the userspace engine use all of it")]
mod support;
#[path = "tun/wire.rs"]
mod wire;
#[path = "bpf/world.rs"]
mod world;

/// What carries the packets of our nodes.
const ENGINE: &str = "ebpf";
