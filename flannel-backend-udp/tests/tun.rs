//! The userspace engine on a real kernel, with real packets.
//!
//! These tests need more than a user namespace: a TUN device is made through `/dev/net/tun`.

#![expect(clippy::disallowed_methods, reason = "ip(8) sets what a router on the way would")]

#[path = "tun/contract.rs"]
mod contract;
#[path = "tun/lab.rs"]
mod lab;
#[path = "tun/load.rs"]
mod load;
#[path = "tun/peers.rs"]
mod peers;
#[path = "tun/repairs.rs"]
mod repairs;
#[path = "tun/safety.rs"]
mod safety;
#[path = "tun/support.rs"]
mod support;
#[path = "tun/traffic.rs"]
mod traffic;
#[path = "tun/unused.rs"]
mod unused;
#[path = "tun/wire.rs"]
mod wire;

/// Held by a test that loads this process, and by one that looks at its load.
static LOAD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What carries the packets of our nodes.
const ENGINE: &str = "userspace";
