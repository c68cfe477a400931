//! The userspace engine on a real kernel, with real packets.
//!
//! These tests need more than a user namespace: a TUN device is made through `/dev/net/tun`.

#[path = "tun/contract.rs"]
mod contract;
#[path = "tun/floods.rs"]
mod floods;
#[path = "tun/lab.rs"]
mod lab;
#[path = "tun/many.rs"]
mod many;
#[path = "tun/paths.rs"]
mod paths;
#[path = "tun/peers.rs"]
mod peers;
#[path = "vm/thousands.rs"]
mod thousands;
#[path = "tun/traffic.rs"]
mod traffic;
#[path = "tun/wireguard_go.rs"]
mod wireguard_go;
