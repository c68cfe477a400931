//! WireGuard on a kernel that has it, with real packets.

#[path = "vm/contract.rs"]
mod contract;
#[path = "vm/drift.rs"]
mod drift;
#[path = "vm/many.rs"]
mod many;
#[path = "vm/sessions.rs"]
mod sessions;
#[path = "vm/support.rs"]
mod support;
#[path = "vm/thousands.rs"]
mod thousands;
