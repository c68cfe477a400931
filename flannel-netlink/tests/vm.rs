//! What depends on the kernel.

#[path = "vm/forwarding.rs"]
mod forwarding;
#[path = "vm/wireguard.rs"]
mod wireguard;
