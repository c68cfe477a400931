//! One peer that comes or goes while there are many.

use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_netlink::{Table as Applier, state::Object};
use tokio::time::Instant;

use crate::{
    follow::Follower, leases::Leases, network::block, report::Table, stats::percentile, unit::Unit,
};

/// Times `updates` peers that come and go, from the change of the store to the change of the route.
pub(super) async fn end_to_end(
    leases: &mut Leases,
    follower: &mut Follower,
    updates: u32,
    count: u32,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let first = count + FREE;
    // All come before the first one goes: that takes a second, after which everything has to be fetched into the processor anew.
    for number in first..first + updates {
        let start = Instant::now();
        // An answer to the writer may come later than the route.
        let there = follower.route(block(number).into(), true, PATIENCE);
        let ((), there) = tokio::try_join!(leases.add(number), there)?;
        added.push(there - start);
    }
    for number in first..first + updates {
        let start = Instant::now();
        let gone = follower.route(block(number).into(), false, PATIENCE);
        let ((), gone) = tokio::try_join!(leases.remove(number), gone)?;
        removed.push(gone - start);
    }
    record(table, row, &added, &removed);
    Ok(())
}

/// Times the same with our applier alone: each of `peers` goes and comes back.
pub(super) async fn in_applier(
    applier: &mut Applier,
    peers: &[Vec<Object>],
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for peer in peers {
        let start = Instant::now();
        peer.iter().for_each(|object| applier.forget(&object.key()));
        let report = applier.sync().await?;
        removed.push(start.elapsed());
        ensure!(report.removed == peer.len(), "{} of {} removed", report.removed, peer.len());
        let start = Instant::now();
        peer.iter().for_each(|object| applier.want(*object));
        let report = applier.sync().await?;
        added.push(start.elapsed());
        ensure!(report.added == peer.len(), "{} of {} added", report.added, peer.len());
    }
    record(table, row, &added, &removed);
    Ok(())
}

fn record(table: &mut Table, row: &str, added: &[Duration], removed: &[Duration]) {
    for (durations, [p50, p99]) in
        [(added, [ADDED_50, ADDED_99]), (removed, [REMOVED_50, REMOVED_99])]
    {
        let seconds: Vec<_> = durations.iter().map(Duration::as_secs_f64).collect();
        for (column, percent) in [(p50, 50.0), (p99, 99.0)] {
            if let Some(value) = percentile(&seconds, percent) {
                table.add(row, column, value);
            }
        }
    }
}

/// A node whose own place is among the peers has taken one of the first subnets behind them.
const FREE: u32 = 64;

/// One change takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) const COLUMNS: [(&str, Unit); 4] = [
    (ADDED_50, Unit::Seconds),
    (ADDED_99, Unit::Seconds),
    (REMOVED_50, Unit::Seconds),
    (REMOVED_99, Unit::Seconds),
];
const ADDED_50: &str = "added, p50";
const ADDED_99: &str = "added, p99";
const REMOVED_50: &str = "removed, p50";
const REMOVED_99: &str = "removed, p99";
