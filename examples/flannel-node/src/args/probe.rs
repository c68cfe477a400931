//! Whether the ways to peers are looked at.

use clap::{ArgAction, Args};
use flannel_probe::Options;

use super::values;

/// Whether the ways to peers are looked at.
#[derive(Args, Debug)]
pub(crate) struct ProbeArgs {
    /// Ask peers, and answer them, to find out how large packets to each may be and whether checksums that are left to the hardware
    /// arrive; and act on it.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) probe_peers: bool,

    /// The UDP port of --probe-peers, equal on all nodes.
    #[arg(long, value_name = "PORT", default_value_t = Options::default().port, value_parser = values::number(1..=u16::MAX))]
    pub(crate) probe_port: u16,
}

impl ProbeArgs {
    /// How to ask, if at all.
    pub(crate) fn options(&self) -> Option<Options> {
        self.probe_peers.then(|| Options { port: self.probe_port, ..Options::default() })
    }
}
