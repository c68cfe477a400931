//! A node of a large Kubernetes cluster: start, memory, heartbeats of other nodes, and new nodes.

mod api_server;
mod cluster_node;
mod kube_apiserver;

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, interval, sleep};

use crate::{
    args::{Family, Kubernetes, StoreKind},
    follow::Follower,
    leases::attrs,
    network::{Plan, block, blocks, check_count, network, own_block},
    proc,
    program::{Node, Program},
    report::Table,
    session::Session,
    site::testbed,
    stats::percentile,
    unit::Unit,
};
use api_server::ApiServer;
use cluster_node::ClusterNode;

pub(crate) async fn run(session: &Session, options: &Kubernetes) -> Result<Vec<Table>> {
    options.peers.iter().try_for_each(|count| check_count(*count + options.updates))?;
    let columns = [
        (CONVERGED, Unit::Seconds),
        (CPU, Unit::Seconds),
        (RECEIVED, Unit::Bytes),
        (RESIDENT, Unit::Bytes),
        (PEAK, Unit::Bytes),
        (HEARTBEAT_RECEIVED, Unit::Bytes),
        (HEARTBEAT_CPU, Unit::Seconds),
        (ADDED_50, Unit::Seconds),
        (ADDED_99, Unit::Seconds),
    ];
    let server =
        if options.api_server.is_some() { "kube-apiserver" } else { "the tests' API server" };
    let mut tables = Vec::new();
    for &peers in &options.peers {
        tables.push((peers, Table::new(format!("{peers} Nodes, {server}"), &columns)));
    }
    for run in session.runs() {
        for (peers, table) in &mut tables {
            for (program, backend, row) in session.subjects() {
                session.progress(run, format!("{row} with {peers} Nodes, {server}"));
                let plan =
                    Plan { store: StoreKind::File, backend, family: Family::V4, peers: *peers };
                if let Err(error) = measure(session, options, program, plan, table, &row).await {
                    table.trouble(&row, format!("run {run}: {error:#}"));
                }
            }
        }
    }
    Ok(tables.into_iter().map(|(_, table)| table).collect())
}

async fn measure(
    session: &Session,
    options: &Kubernetes,
    program: &Program,
    plan: Plan<'_>,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let Plan { backend, family, peers, .. } = plan;
    // The server is on a host of its own, so that all that comes in from the link is from it.
    let testbed = testbed(2, family).await?;
    let (host, server_host) = (testbed.host(0), testbed.host(1));
    let folder = tempfile::Builder::new().prefix("flannel-bench-").tempdir_in(&session.scratch);
    let folder =
        folder.with_context(|| format!("cannot make a folder in {}", session.scratch.display()))?;
    let mut own = ClusterNode::registered(host.name().into());
    own.block = own_block(0, family).ipv4();
    let mut nodes = (0..peers).map(|number| peer(backend, number)).collect::<Result<Vec<_>>>()?;
    nodes.push(own);
    let server =
        ApiServer::start(options.api_server.as_deref(), server_host, folder.path(), &nodes).await?;
    nodes.pop();

    let mut follower = Follower::open(host)?;
    let args = server.node_args(folder.path(), &network(backend, family)?)?;
    let mut node = Node::start_with(program, host, folder.path(), args)?;
    let started = node.started;
    let converged = tokio::select! {
        converged = follower.all_routes(blocks(peers), options.patience) => converged,
        ended = node.process.wait() => Err(anyhow::anyhow!("it ended with {}", ended?)),
    };
    let converged = converged.with_context(|| {
        let said = node.process.output();
        format!("its last log lines:\n  {}", said[said.len().saturating_sub(5)..].join("\n  "))
    })?;
    table.add(row, CONVERGED, (converged - started).as_secs_f64());
    let pid = node.pid()?;
    table.add(row, CPU, proc::cpu_time(pid)?.as_secs_f64());
    table.add(row, RECEIVED, proc::received(pid, UPLINK)? as f64);
    sleep(SETTLE).await;

    let (received, cpu) = (proc::received(pid, UPLINK)?, proc::cpu_time(pid)?);
    let mut ticks = interval(Duration::from_secs(1) / options.rate);
    for number in 0..options.heartbeats {
        ticks.tick().await;
        // In an order in which no two of the same Node come together.
        let node = &mut nodes[number as usize % peers as usize];
        node.beat();
        server.put(node).await?;
    }
    // The last one has to arrive.
    sleep(Duration::from_secs(1)).await;
    let each = |sum: f64| sum / f64::from(options.heartbeats);
    table.add(row, HEARTBEAT_RECEIVED, each((proc::received(pid, UPLINK)? - received) as f64));
    table.add(row, HEARTBEAT_CPU, each((proc::cpu_time(pid)? - cpu).as_secs_f64()));

    let added = add(options, backend, peers, &server, &mut follower).await?;
    for (column, percent) in [(ADDED_50, 50.0), (ADDED_99, 99.0)] {
        if let Some(value) = percentile(&added, percent) {
            table.add(row, column, value);
        }
    }
    let usage = proc::usage(pid)?;
    table.add(row, RESIDENT, usage.resident as f64);
    table.add(row, PEAK, usage.peak as f64);
    node.stop().await
}

/// Adds Nodes as they come: the kubelet registers one, the controller-manager gives it a block, flannel publishes. How many seconds
/// the route takes from then on.
async fn add(
    options: &Kubernetes,
    backend: &str,
    peers: u32,
    server: &ApiServer,
    follower: &mut Follower,
) -> Result<Vec<f64>> {
    let mut added = Vec::new();
    for number in peers..peers + options.updates {
        let complete = peer(backend, number)?;
        let mut node = ClusterNode::registered(complete.name.clone());
        server.put(&node).await?;
        sleep(PAUSE).await;
        node.block = complete.block;
        server.put(&node).await?;
        sleep(PAUSE).await;
        follower.written()?;
        let start = Instant::now();
        let there = follower.route(block(number).into(), true, options.patience);
        let ((), there) = tokio::try_join!(server.put(&complete), there)?;
        added.push((there - start).as_secs_f64());
    }
    Ok(added)
}

/// A Node that runs flannel.
fn peer(backend: &str, number: u32) -> Result<ClusterNode> {
    let mut node = ClusterNode::registered(format!("peer{number}"));
    (node.block, node.published) = (Some(block(number)), Some(attrs(backend, number)?));
    Ok(node)
}

/// The device of a host on the link.
const UPLINK: &str = "eth0";
/// By then a node has done what it does after its start: it keeps its state after ten seconds at the latest.
const SETTLE: Duration = Duration::from_secs(12);
/// Between the steps of a Node that is added.
const PAUSE: Duration = Duration::from_millis(100);

const CONVERGED: &str = "start to last object";
const CPU: &str = "cpu until converged";
const RECEIVED: &str = "received until then";
const RESIDENT: &str = "resident memory";
const PEAK: &str = "peak memory";
const HEARTBEAT_RECEIVED: &str = "received per heartbeat";
const HEARTBEAT_CPU: &str = "cpu per heartbeat";
const ADDED_50: &str = "new node, p50";
const ADDED_99: &str = "new node, p99";
