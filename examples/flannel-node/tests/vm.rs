//! Whole nodes on a kernel that has WireGuard, among them the real flanneld.

#[path = "vm/alone.rs"]
mod alone;
#[path = "vm/capture.rs"]
mod capture;
#[path = "kube/cluster.rs"]
#[expect(
    clippy::disallowed_methods,
    dead_code,
    reason = "programs run on its hosts; the tests on this kernel use all of it"
)]
mod cluster;
#[path = "vm/encrypted.rs"]
mod encrypted;
#[path = "vm/mixed.rs"]
mod mixed;
#[path = "vm/moving.rs"]
mod moving;
#[path = "flanneld/support.rs"]
#[expect(dead_code, reason = "the tests on this kernel use all of it")]
mod support;
