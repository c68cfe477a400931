//! On the real kernel, each test in namespaces of its own.

#[path = "netns/bridge.rs"]
mod bridge;
#[path = "netns/by_hand.rs"]
mod by_hand;
#[path = "netns/flannel.rs"]
mod flannel;
#[path = "netns/iptables.rs"]
mod iptables;
#[path = "netns/kept.rs"]
mod kept;
#[path = "netns/loopback.rs"]
mod loopback;
#[path = "netns/portmap.rs"]
mod portmap;
#[path = "netns/support.rs"]
mod support;
