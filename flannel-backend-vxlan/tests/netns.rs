//! VXLAN on a real kernel, with real packets.

#[path = "netns/contract.rs"]
mod contract;
#[path = "netns/devices.rs"]
mod devices;
#[path = "netns/direct.rs"]
mod direct;
#[path = "netns/families.rs"]
mod families;
#[path = "netns/handover.rs"]
mod handover;
#[path = "netns/leftovers.rs"]
mod leftovers;
#[path = "netns/mtu.rs"]
mod mtu;
#[path = "netns/nodes.rs"]
mod nodes;
#[path = "netns/paths.rs"]
mod paths;
#[path = "netns/peers.rs"]
mod peers;
#[path = "netns/repairs.rs"]
mod repairs;
#[path = "netns/settings.rs"]
mod settings;
#[path = "netns/support.rs"]
mod support;
#[path = "netns/uplink.rs"]
mod uplink;
