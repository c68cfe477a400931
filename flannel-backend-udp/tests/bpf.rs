//! The eBPF engine on a real kernel, with real packets.
//!
//! These tests need more than a user namespace: nobody but root loads BPF programs.

#[path = "bpf/contract.rs"]
mod contract;
#[path = "tun/support.rs"]
#[expect(dead_code, reason = "the tests of the userspace engine use all of it")]
mod support;
