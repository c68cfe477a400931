//! Taking a lease: many nodes at once, and one on a store with many leases.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use flannel_store::{FileRegistry, Registry};
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use crate::{
    args::Acquire,
    arrivals::Arrivals,
    leases::{Leases, check_count},
    proc,
    program::{Node, Program, subnet},
    report::Table,
    session::{Session, testbed},
    unit::Unit,
};

pub(crate) async fn run(session: &Session, options: &Acquire) -> Result<Vec<Table>> {
    options.leases.iter().try_for_each(|count| check_count(*count))?;
    let columns = [(FAILURES, Unit::Count), (SHARED, Unit::Count), (ALL, Unit::Seconds)];
    let mut together = Table::new(format!("{} nodes at once", options.nodes), &columns);
    let columns = [(LEASE, Unit::Seconds), (READY, Unit::Seconds), (PEAK, Unit::Bytes)];
    let alone = |count: &u32| Table::new(format!("one node, {count} leases"), &columns);
    let mut alone: Vec<_> = options.leases.iter().map(alone).collect();
    for run in session.runs() {
        for (program, backend, row) in session.subjects() {
            session.progress(run, format!("{} nodes of {row} at once", options.nodes));
            many(session, options.nodes, program, backend, &mut together, &row).await?;
        }
        for (&count, table) in options.leases.iter().zip(&mut alone) {
            let backend = session.common.backend.first().context("there is no backend")?;
            read(session, backend, count, table).await?;
            for (program, backend, row) in session.subjects() {
                session.progress(run, format!("{row} with {count} leases"));
                if let Err(error) = one(session, program, backend, count, table, &row).await {
                    table.trouble(&row, format!("run {run}: {error:#}"));
                }
            }
        }
    }
    for table in &mut alone {
        table.compare("of store read", LEASE, &[STORE]);
    }
    Ok([together].into_iter().chain(alone).collect())
}

/// Starts nodes on as many hosts and one empty store.
async fn many(
    session: &Session,
    nodes: u32,
    program: &Program,
    backend: &str,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let leases = Leases::build(&session.scratch, backend, 0).await?;
    let testbed = testbed(nodes).build().await?;
    let start = Instant::now();
    let started: Result<Vec<_>> = testbed
        .hosts()
        .iter()
        .map(|host| Node::start(program, host, &leases.store(), leases.folder()))
        .collect();
    let mut started = started?;
    let ended = join_all(started.iter_mut().map(|node| node.ready(PATIENCE))).await;
    let (mut failures, mut last, mut subnets) = (0, start, BTreeSet::new());
    for result in &ended {
        match result {
            Ok((env, at)) => {
                last = last.max(*at);
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
    if failures == 0 {
        table.add(row, ALL, (last - start).as_secs_f64());
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
    backend: &str,
    count: u32,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let leases = Leases::build(&session.scratch, backend, count).await?;
    let testbed = testbed(1).build().await?;
    let mut arrivals = Arrivals::watch(&leases.subnets())?;
    let mut node = Node::start(program, testbed.host(0), &leases.store(), leases.folder())?;
    let started = node.started;
    let lease = async {
        let arrived = timeout(PATIENCE, arrivals.any()).await;
        arrived.with_context(|| format!("there was no lease after {PATIENCE:?}"))??;
        anyhow::Ok(Instant::now())
    };
    let (lease, (_, ready)) = tokio::try_join!(lease, node.ready(PATIENCE))?;
    table.add(row, LEASE, (lease - started).as_secs_f64());
    table.add(row, READY, (ready - started).as_secs_f64());
    table.add(row, PEAK, proc::usage(node.pid()?)?.peak as f64);
    node.stop().await
}

/// What it takes to read the store alone.
async fn read(session: &Session, backend: &str, count: u32, table: &mut Table) -> Result<()> {
    let leases = Leases::build(&session.scratch, backend, count).await?;
    let registry = FileRegistry::open(leases.store()).await?;
    let start = Instant::now();
    registry.list().await?;
    table.add(STORE, LEASE, start.elapsed().as_secs_f64());
    let start = Instant::now();
    leases.read_plainly().context("cannot read the leases")?;
    table.add(FILES, LEASE, start.elapsed().as_secs_f64());
    Ok(())
}

/// What flannel needs for 60,000 leases is 16 s.
const PATIENCE: Duration = Duration::from_secs(180);

const STORE: &str = "store read alone";
const FILES: &str = "plain read of the files";
const FAILURES: &str = "failures";
const SHARED: &str = "subnets held twice";
const ALL: &str = "until all are ready";
const LEASE: &str = "start to lease";
const READY: &str = "start to subnet.env";
const PEAK: &str = "peak memory";
