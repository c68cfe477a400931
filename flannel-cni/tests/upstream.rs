//! Beside containernetworking's plugins, which `./ci.sh cni` builds: on equal nodes the same calls have the same results.

#[path = "upstream/cases.rs"]
mod cases;
#[path = "upstream/cnitool.rs"]
mod cnitool;
#[path = "upstream/explained.rs"]
mod explained;
#[path = "upstream/faults.rs"]
mod faults;
#[path = "upstream/killed.rs"]
mod killed;
#[path = "upstream/matrix.rs"]
mod matrix;
#[path = "upstream/observed.rs"]
mod observed;
#[path = "upstream/portmap_tests.rs"]
mod portmap_tests;
#[path = "upstream/rule_cases.rs"]
mod rule_cases;
#[path = "upstream/shared.rs"]
mod shared;
#[path = "upstream/strace.rs"]
mod strace;
#[path = "netns/support.rs"]
mod support;
#[path = "upstream/theirs.rs"]
mod theirs;
