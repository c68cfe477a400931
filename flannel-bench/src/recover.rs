//! How long packets and kernel state are wrong after a fault.

mod cluster;
mod exact;
mod faults;

use std::time::Duration;

use anyhow::Result;
use flannel_testbed::probe;
use tokio::time::{Instant, sleep, timeout};

use self::{
    cluster::Cluster,
    faults::{Fault, Injected, Kind, Meddled},
};
use crate::{
    args::{Family, Recover},
    follow::Follower,
    network::Plan,
    program::Program,
    report::Table,
    session::Session,
    unit::Unit,
};

pub(crate) async fn run(session: &Session, options: &Recover) -> Result<Vec<Table>> {
    let columns = [
        (FLOW, Unit::Seconds),
        (EXACT, Unit::Seconds),
        (GAP, Unit::Seconds),
        (LOST, Unit::Count),
        (WRITES, Unit::PerSecond),
    ];
    let mut tables = Vec::new();
    for (store, suffix) in session.stores() {
        for backend in &session.common.backend {
            let plan = Plan { store, backend, family: Family::V4, peers: 0 };
            let mut table = Table::new(format!("fault, {backend}{suffix}"), &columns);
            for run in session.runs() {
                for fault in Fault::all(options) {
                    for program in &session.programs {
                        let row = match session.programs.len() {
                            1 => fault.name.to_owned(),
                            _ => format!("{}, {}", fault.name, program.name),
                        };
                        session.progress(run, format!("{backend}{suffix}: {row}"));
                        let ended =
                            measure(session, options, program, plan, &fault, &mut table, &row);
                        if let Err(error) = ended.await {
                            table.trouble(&row, format!("run {run}: {error:#}"));
                        }
                    }
                }
            }
            tables.push(table);
        }
    }
    Ok(tables)
}

async fn measure(
    session: &Session,
    options: &Recover,
    program: &Program,
    plan: Plan<'_>,
    fault: &Fault,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let mut cluster = Cluster::build(session, program, plan).await?;
    let before = cluster.state().await?;
    let mut followers = cluster.followers()?;
    let [from, to] = &cluster.pods;
    let stream = probe::stream(from, to.ip(), options.rate)?;
    stream.flowing().await;

    let injected = match fault.kind {
        Kind::Once(inject) => inject(&cluster).await?,
        Kind::Meddler(meddle) => match meddle(&cluster).await? {
            Some(meddler) => {
                let writes = meddling(options.meddling, &mut followers[0], meddler).await?;
                table.add(row, WRITES, writes);
                Some(Injected::default())
            }
            None => None,
        },
        Kind::Change(other) => match other(plan.backend) {
            Some(other) => Some(cluster.change(program, plan, other).await?),
            None => None,
        },
        Kind::Restart(signals) => Some(cluster.restart(program, signals, options.restarts).await?),
    };
    let Some(injected) = injected else { return Ok(()) };
    let start = Instant::now();
    let renamed = injected.renamed.as_ref();
    let wanted = [before[0].renamed(renamed), before[1].renamed(renamed)];
    let flowing = timeout(options.patience, async {
        stream.flowing().await;
        start.elapsed()
    });
    let foreign = injected.foreign;
    let exact = timeout(options.patience, cluster.until(&wanted, foreign, &mut followers));
    let (flowing, exact) = tokio::join!(flowing, exact);
    match flowing {
        Ok(time) => table.add(row, FLOW, time.as_secs_f64()),
        Err(_) => table.trouble(row, format!("no packets after {:?}", options.patience)),
    }
    match exact {
        Ok(at) => table.add(row, EXACT, (at? - start).as_secs_f64()),
        Err(_) => {
            let text = format!("the state differed after {:?}:", options.patience);
            table.trouble(row, text);
            let after = cluster.state().await?.map(|state| state.without(foreign));
            for (wanted, after) in wanted.iter().zip(&after) {
                let lines = wanted.difference(after);
                lines.into_iter().take(DIFFERENCES).for_each(|line| table.trouble(row, line));
            }
        }
    }
    sleep(SETTLE).await;
    let report = stream.stop().await;
    if !injected.was_down {
        table.add(row, GAP, report.longest_gap.as_secs_f64());
        table.add(row, LOST, report.lost as f64);
    }
    Ok(())
}

/// Lets somebody meddle for a while and returns how often others than he wrote, per second.
async fn meddling(time: Duration, follower: &mut Follower, meddled: Meddled) -> Result<f64> {
    follower.written()?;
    sleep(time).await;
    let deeds = meddled.meddler.deeds() * meddled.notices;
    drop(meddled);
    Ok(follower.written()?.saturating_sub(deeds) as f64 / time.as_secs_f64())
}

/// What comes later than this after the state is exact is not the fault's doing.
const SETTLE: Duration = Duration::from_millis(500);

/// How many lines of a difference are shown.
const DIFFERENCES: usize = 6;

const FLOW: &str = "packets flow after";
const EXACT: &str = "state exact after";
const GAP: &str = "longest gap";
const LOST: &str = "probes lost";
const WRITES: &str = "writes meanwhile";
