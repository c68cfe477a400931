//! WireGuard on a kernel that has it, with real packets.

#[path = "vm/contract.rs"]
mod contract;
#[path = "vm/drift.rs"]
mod drift;
#[path = "tun/lab.rs"]
#[expect(dead_code, reason = "the tests on this kernel use all of it")]
mod lab;
#[path = "vm/many.rs"]
mod many;
#[path = "vm/sessions.rs"]
mod sessions;
#[path = "vm/support.rs"]
mod support;
#[path = "vm/thousands.rs"]
mod thousands;
#[path = "vm/userspace.rs"]
mod userspace;
