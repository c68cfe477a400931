//! Saying who changed what of ours, and not too often.

use std::fs;

use flannel_netlink::{
    LogLimit,
    table::{ChangedBy, Drift},
};
use tokio::time::Instant;
use tracing::warn;

/// Logs changes by others: the first ones, that it goes on, and how much was left out.
pub(crate) fn log(limit: &mut LogLimit, drifts: &[Drift]) {
    for (drift, left_out) in limit.choose(drifts, Instant::now()) {
        let process = process(drift.by);
        let left_out = Some(left_out).filter(|left_out| *left_out > 0);
        warn!(process, left_out, "{drift}");
    }
}

/// The name of the program, as far as netlink tells: a program's first socket has its process number as port. Many programs have
/// ended by the time somebody asks.
fn process(by: ChangedBy) -> Option<String> {
    let ChangedBy::Port(port) = by else { return None };
    let name = fs::read_to_string(format!("/proc/{port}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_while_it_runs() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let named = process(ChangedBy::Port(std::process::id()));
        assert_eq!(named.as_deref(), Some(own.trim_end()));
        assert_eq!(process(ChangedBy::Port(u32::MAX)), None);
        assert_eq!(process(ChangedBy::Kernel), None);
    }
}
