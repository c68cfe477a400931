//! VXLAN on a real kernel, with real packets.

#[path = "netns/contract.rs"]
mod contract;
#[path = "netns/support.rs"]
mod support;
