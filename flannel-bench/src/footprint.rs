//! What a node takes: time to start, memory, threads, processor time and wakeups when idle.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use tokio::time::sleep;

use crate::{
    args::Footprint,
    follow::Follower,
    leases::{Leases, blocks, check_count},
    proc,
    program::{Node, Program},
    report::Table,
    session::{Session, testbed},
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
    let table = |count: &u32| Table::new(format!("node with {count} peers"), &columns);
    let mut tables: Vec<_> = options.peers.iter().map(table).collect();
    for run in session.runs() {
        for (&count, table) in options.peers.iter().zip(&mut tables) {
            for (program, backend, row) in session.subjects() {
                session.progress(run, format!("{row} with {count} peers"));
                if let Err(error) =
                    measure(session, options, program, backend, count, table, &row).await
                {
                    table.trouble(&row, format!("run {run}: {error:#}"));
                }
            }
        }
    }
    tables.push(sizes(session)?);
    Ok(tables)
}

async fn measure(
    session: &Session,
    options: &Footprint,
    program: &Program,
    backend: &str,
    count: u32,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let leases = Leases::build(&session.scratch, backend, count).await?;
    let testbed = testbed(1).build().await?;
    let host = testbed.host(0);
    let mut follower = Follower::open(host)?;
    let mut node = Node::start(program, host, &leases.store(), leases.folder())?;
    let started = node.started;
    let ((_, ready), _) =
        tokio::try_join!(node.ready(PATIENCE), follower.all_routes(blocks(count), PATIENCE))?;
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
