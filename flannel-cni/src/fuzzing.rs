//! What the fuzzer calls.

use crate::{bridge, flannel, host_local, portmap, protocol::Config};

/// Has every plugin read a configuration as its own, and say what it would do.
pub fn read_by_all(config: &Config, arguments: &str) {
    let arguments = arguments.parse().unwrap_or_default();
    bridge::read(config, &arguments);
    flannel::read(config);
    host_local::read(config, &arguments);
    portmap::read(config);
}
