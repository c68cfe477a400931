//! What a node takes: time to start, memory, threads, processor time and wakeups when idle.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use tokio::time::sleep;

use crate::{
    args::{Family, Footprint},
    follow::Follower,
    network::{Plan, blocks, check_count},
    proc,
    program::{Node, Program},
    report::Table,
    session::Session,
    site::Site,
    unit::Unit,
};

pub(crate) async fn run(session: &Session, options: &Footprint) -> Result<Vec<Table>> {
    options.peers.iter().try_for_each(|count| check_count(*count))?;
    let columns = [
        (READY, Unit::Seconds),
        (RESIDENT, Unit::Bytes),
        (PEAK, Unit::Bytes),
        (THREADS, Unit::Count),
        (IDLE, Unit::CpuShare),
        (WAKEUPS, Unit::PerSecond),
    ];
    let mut tables = Vec::new();
    for (store, suffix) in session.stores() {
        for &peers in &options.peers {
            let title = format!("node with {peers} peers{suffix}");
            tables.push((store, peers, Table::new(title, &columns)));
        }
    }
    for run in session.runs() {
        for (store, peers, table) in &mut tables {
            for (program, backend, row) in session.subjects() {
                session.progress(run, format!("{row} with {peers} peers, {}", store.name()));
                let plan = Plan { store: *store, backend, family: Family::V4, peers: *peers };
                let measured = measure(session, options, program, plan, table, &row).await;
                if let Err(error) = measured {
                    table.trouble(&row, format!("run {run}: {error:#}"));
                }
            }
        }
    }
    let tables = tables.into_iter().map(|(.., table)| table);
    Ok(tables.chain([sizes(session)?]).collect())
}

async fn measure(
    session: &Session,
    options: &Footprint,
    program: &Program,
    plan: Plan<'_>,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let site = Site::build(session, 1, plan).await?;
    let mut follower = Follower::open(site.host(0))?;
    let mut node = Node::start(program, site.host(0), &site.leases)?;
    let started = node.started;
    let ((_, ready), _) =
        tokio::try_join!(node.ready(PATIENCE), follower.all_routes(blocks(plan.peers), PATIENCE))?;
    table.add(row, READY, (ready - started).as_secs_f64());
    let pid = node.pid()?;
    let usage = proc::usage(pid)?;
    table.add(row, RESIDENT, usage.resident as f64);
    table.add(row, PEAK, usage.peak as f64);
    table.add(row, THREADS, usage.threads as f64);
    let (cpu, wakeups) = (proc::cpu_time(pid)?, proc::wakeups(pid)?);
    sleep(options.idle).await;
    let (cpu, wakeups) = (proc::cpu_time(pid)? - cpu, proc::wakeups(pid)?.saturating_sub(wakeups));
    table.add(row, IDLE, cpu.as_secs_f64() / options.idle.as_secs_f64());
    table.add(row, WAKEUPS, wakeups as f64 / options.idle.as_secs_f64());
    node.stop().await
}

fn sizes(session: &Session) -> Result<Table> {
    let mut table = Table::new("program", &[(SIZE, Unit::Bytes)]);
    for Program { name, path } in &session.programs {
        let file =
            fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        table.add(name, SIZE, file.len() as f64);
    }
    Ok(table)
}

/// What flannel needs for 10,000 host-gw peers is two minutes.
const PATIENCE: Duration = Duration::from_secs(180);

const READY: &str = "start to subnet.env";
const RESIDENT: &str = "resident memory";
const PEAK: &str = "peak memory";
const THREADS: &str = "threads";
const IDLE: &str = "idle cpu";
const WAKEUPS: &str = "idle wakeups";
const SIZE: &str = "size of the file";
