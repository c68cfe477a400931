//! The userspace engine on a real kernel, with real packets.
//!
//! These tests need more than a user namespace: a TUN device is made through `/dev/net/tun`.

#[path = "tun/contract.rs"]
mod contract;
#[path = "tun/support.rs"]
mod support;
