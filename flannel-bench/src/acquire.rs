//! Taking a lease: many nodes at once, and one on a store with many leases.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use crate::{
    args::{Acquire, Family, StoreKind},
    network::{Plan, check_count},
    proc,
    program::{Node, Program, subnet},
    report::Table,
    session::Session,
    site::Site,
    unit::Unit,
};

pub(crate) async fn run(session: &Session, options: &Acquire) -> Result<Vec<Table>> {
    options.leases.iter().try_for_each(|count| check_count(*count))?;
    let mut tables = Vec::new();
    for (store, suffix) in session.stores() {
        tables.extend(measure(session, options, store, &suffix).await?);
    }
    Ok(tables)
}

async fn measure(
    session: &Session,
    options: &Acquire,
    store: StoreKind,
    suffix: &str,
) -> Result<Vec<Table>> {
    let columns = [
        (FAILURES, Unit::Count),
        (SHARED, Unit::Count),
        (FIRST, Unit::Seconds),
        (ALL, Unit::Seconds),
        (CPU, Unit::Seconds),
    ];
    let title = format!("{} nodes at once{suffix}", options.nodes);
    let mut together = Table::new(title, &columns);
    let columns = [
        (LEASE, Unit::Seconds),
        (PEAK_AT_LEASE, Unit::Bytes),
        (READY, Unit::Seconds),
        (PEAK, Unit::Bytes),
        (CPU, Unit::Seconds),
    ];
    let alone = |count: &u32| Table::new(format!("one node, {count} leases{suffix}"), &columns);
    let mut alone: Vec<_> = options.leases.iter().map(alone).collect();
    for run in session.runs() {
        for (program, backend, row) in session.subjects() {
            if options.nodes == 0 {
                break;
            }
            session.progress(run, format!("{} nodes of {row} at once{suffix}", options.nodes));
            let plan = Plan { store, backend, family: Family::V4, peers: 0 };
            if let Err(error) =
                many(session, options.nodes, program, plan, &mut together, &row).await
            {
                together.trouble(&row, format!("run {run}: {error:#}"));
            }
        }
        for (&peers, table) in options.leases.iter().zip(&mut alone) {
            let backend = session.common.backend.first().context("there is no backend")?;
            let plan = Plan { store, backend, family: Family::V4, peers };
            read(session, plan, table).await?;
            for (program, backend, row) in session.subjects() {
                session.progress(run, format!("{row} with {peers} leases{suffix}"));
                let plan = Plan { backend, ..plan };
                if let Err(error) = one(session, program, plan, table, &row).await {
                    table.trouble(&row, format!("run {run}: {error:#}"));
                }
            }
        }
    }
    for table in &mut alone {
        table.compare("of plain read", LEASE, &[PLAIN]);
    }
    let together = (options.nodes > 0).then_some(together);
    Ok(together.into_iter().chain(alone).collect())
}

/// Starts nodes on as many hosts and one empty store.
async fn many(
    session: &Session,
    nodes: u32,
    program: &Program,
    plan: Plan<'_>,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let site = Site::build(session, nodes, plan).await?;
    let start = Instant::now();
    let started: Result<Vec<_>> =
        site.hosts().iter().map(|host| Node::start(program, host, &site.leases)).collect();
    let mut started = started?;
    let ended = join_all(started.iter_mut().map(|node| node.ready(PATIENCE))).await;
    let (mut failures, mut first, mut last, mut subnets) = (0, None, start, BTreeSet::new());
    for result in &ended {
        match result {
            Ok((env, at)) => {
                last = last.max(*at);
                first = Some(first.map_or(*at, |first: Instant| first.min(*at)));
                subnets.insert(subnet(env)?);
            }
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    table.trouble(row, format!("{error:#}"));
                }
            }
        }
    }
    table.add(row, FAILURES, f64::from(failures));
    table.add(row, SHARED, (ended.len() - subnets.len()) as f64 - f64::from(failures));
    if let Some(first) = first {
        table.add(row, FIRST, (first - start).as_secs_f64());
    }
    if failures == 0 {
        table.add(row, ALL, (last - start).as_secs_f64());
        let used: Result<Duration> = started.iter().map(|node| proc::cpu_time(node.pid()?)).sum();
        table.add(row, CPU, used?.as_secs_f64());
    }
    for node in started {
        node.stop().await?;
    }
    Ok(())
}

/// Starts one node, and watches for its lease, which is the only one that is written meanwhile.
async fn one(
    session: &Session,
    program: &Program,
    plan: Plan<'_>,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let site = Site::build(session, 1, plan).await?;
    let mut next = site.leases.next_lease().await?;
    let mut node = Node::start(program, site.host(0), &site.leases)?;
    let (started, pid) = (node.started, node.pid()?);
    let lease = async {
        let written = timeout(PATIENCE, next.written()).await;
        let at = written.with_context(|| format!("there was no lease after {PATIENCE:?}"))??;
        anyhow::Ok((at, proc::usage(pid)?))
    };
    let ((lease, usage), (_, ready)) = tokio::try_join!(lease, node.ready(PATIENCE))?;
    table.add(row, LEASE, (lease - started).as_secs_f64());
    table.add(row, PEAK_AT_LEASE, usage.peak as f64);
    table.add(row, READY, (ready - started).as_secs_f64());
    table.add(row, PEAK, proc::usage(pid)?.peak as f64);
    table.add(row, CPU, proc::cpu_time(pid)?.as_secs_f64());
    node.stop().await
}

/// What it takes to read the store alone.
async fn read(session: &Session, plan: Plan<'_>, table: &mut Table) -> Result<()> {
    let site = Site::build(session, 1, plan).await?;
    table.add(PLAIN, LEASE, site.leases.read_plainly().await?.as_secs_f64());
    let (count, took) = site.leases.list().await?;
    ensure!(count == plan.peers as usize, "the store has {count} leases");
    table.add(STORE, LEASE, took.as_secs_f64());
    Ok(())
}

/// What flannel needs for 60,000 leases is 16 s.
const PATIENCE: Duration = Duration::from_secs(180);

const STORE: &str = "store read alone";
const PLAIN: &str = "plain read";
const FAILURES: &str = "failures";
const SHARED: &str = "subnets held twice";
const FIRST: &str = "until the first is ready";
const ALL: &str = "until all are ready";
const LEASE: &str = "start to lease";
const READY: &str = "start to subnet.env";
const PEAK: &str = "peak memory";
const PEAK_AT_LEASE: &str = "peak memory then";
const CPU: &str = "cpu";
