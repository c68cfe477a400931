//! From the start of a node on a store with leases until all of their subnets can be reached.

mod references;
mod updates;

use std::time::Duration;

use anyhow::{Context, Result};
use flannel_testbed::Host;
use tokio::time::sleep;

use crate::{
    args::{Converge, Family},
    captured::Captured,
    follow::Follower,
    network::{Plan, blocks, check_count, network},
    proc,
    program::{Node, Program},
    report::Table,
    session::Session,
    site::Site,
    unit::Unit,
};

/// What is measured at one number of peers with one backend.
struct Tables {
    converge: Table,
    resources: Table,
    updates: Table,
}

pub(crate) async fn run(session: &Session, options: &Converge) -> Result<Vec<Table>> {
    options.peers.iter().try_for_each(|count| check_count(*count))?;
    let mut tables = Vec::new();
    for (store, suffix) in session.stores() {
        for &peers in &options.peers {
            for backend in &session.common.backend {
                let plan = Plan { store, backend, family: Family::V4, peers };
                tables.extend(measure(session, options, plan, &suffix).await?);
            }
        }
    }
    Ok(tables)
}

async fn measure(
    session: &Session,
    options: &Converge,
    plan: Plan<'_>,
    suffix: &str,
) -> Result<Vec<Table>> {
    let Plan { backend, peers, .. } = plan;
    let title = |what: &str| format!("{what}, {backend}, {peers} peers{suffix}");
    let mut tables = Tables {
        converge: Table::new(title("converge"), &[(TIME, Unit::Seconds), (READY, Unit::Seconds)]),
        resources: Table::new(
            title("node"),
            &[
                (CPU, Unit::Seconds),
                (PEAK, Unit::Bytes),
                (RESIDENT, Unit::Bytes),
                (IDLE, Unit::CpuShare),
                (WRITES, Unit::Count),
            ],
        ),
        updates: Table::new(title("one peer"), &updates::COLUMNS),
    };
    for run in session.runs() {
        let mut captured = None;
        for program in &session.programs {
            session
                .progress(run, format!("{} of {backend} with {peers} peers{suffix}", program.name));
            let row = &program.name;
            match node(session, options, program, plan, &mut tables).await {
                // The references write what the first program wrote.
                Ok(objects) => drop(captured.get_or_insert(objects)),
                Err(error) => tables.converge.trouble(row, format!("run {run}: {error:#}")),
            }
        }
        if let Some(captured) = captured.filter(|captured| !captured.objects.is_empty()) {
            session.progress(run, format!("references for {backend} with {peers} peers{suffix}"));
            let measured = references::run(session, options, plan, &captured, &mut tables).await;
            if let Err(error) = measured {
                tables.converge.trouble("references", format!("run {run}: {error:#}"));
            }
        }
    }
    let reference = [references::APPLIER, references::STORE];
    tables.converge.compare("of applier + store", TIME, &reference);
    Ok(vec![tables.converge, tables.resources, tables.updates])
}

/// One run of one program; returns what it wrote.
async fn node(
    session: &Session,
    options: &Converge,
    program: &Program,
    plan: Plan<'_>,
    tables: &mut Tables,
) -> Result<Captured> {
    let Plan { backend, peers, .. } = plan;
    let mut site = Site::build(session, 1, plan).await?;
    let mut follower = Follower::open(site.host(0))?;
    let mut node = Node::start(program, site.host(0), &site.leases)?;
    let started = node.started;
    let ((_, ready), converged) =
        tokio::try_join!(node.ready(PATIENCE), follower.all_routes(blocks(peers), PATIENCE))?;
    let row = &program.name;
    tables.converge.add(row, TIME, (converged - started).as_secs_f64());
    tables.converge.add(row, READY, (ready - started).as_secs_f64());
    if follower.lost > 0 {
        let text =
            format!("notifications were lost {} times, a listing told instead", follower.lost);
        tables.converge.trouble(row, text);
    }
    let pid = node.pid()?;
    tables.resources.add(row, CPU, proc::cpu_time(pid)?.as_secs_f64());
    let captured = capture(site.host(0), backend).await?;

    follower.written()?;
    let cpu = proc::cpu_time(pid)?;
    sleep(options.idle).await;
    let cpu = proc::cpu_time(pid)? - cpu;
    tables.resources.add(row, IDLE, cpu.as_secs_f64() / options.idle.as_secs_f64());
    tables.resources.add(row, WRITES, follower.written()? as f64);

    updates::end_to_end(
        &mut site.leases,
        &mut follower,
        options.updates,
        peers,
        &mut tables.updates,
        row,
    )
    .await?;
    let usage = proc::usage(pid)?;
    tables.resources.add(row, PEAK, usage.peak as f64);
    tables.resources.add(row, RESIDENT, usage.resident as f64);
    node.stop().await?;
    Ok(captured)
}

async fn capture(host: &Host, backend: &str) -> Result<Captured> {
    let network = network(backend, Family::V4)?.ipv4().context("the network has IPv4")?.network();
    Captured::read(host, network.into()).await
}

/// What flannel needs for 10,000 host-gw peers is two minutes.
const PATIENCE: Duration = Duration::from_secs(180);

const TIME: &str = "start to last object";
const READY: &str = "start to subnet.env";
const CPU: &str = "cpu until converged";
const PEAK: &str = "peak memory";
const RESIDENT: &str = "resident memory";
const IDLE: &str = "idle cpu";
const WRITES: &str = "writes when idle";
