//! Other ways to do parts of the same work, in the same run.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use flannel_backend::{PROTOCOL, nexthop_ids};
use flannel_netlink::{Connection, Table as Applier, state::Object, table::Mark};
use flannel_testbed::Host;
use tokio::time::Instant;

use super::{TIME, Tables, updates};
use crate::{
    args::{Converge, Family},
    captured::Captured,
    leases::Leases,
    network::{Plan, network},
    report::Table,
    session::Session,
    site::{Site, testbed},
};

/// Measures every reference once. `captured` is what a node wrote.
pub(super) async fn run(
    session: &Session,
    options: &Converge,
    plan: Plan<'_>,
    captured: &Captured,
    tables: &mut Tables,
) -> Result<()> {
    let site = Site::build(session, 1, plan).await?;
    read_store(&site.leases, plan.peers, &mut tables.converge).await?;
    applier(captured, plan.backend, options.updates, tables).await?;

    let testbed = testbed(3, plan.family).await?;
    let [a, b, c] = testbed.hosts() else { unreachable!("there are three hosts") };
    let moved = captured.moved_to(a).await?;
    let mut connection = Connection::open(a.namespace())?;
    let requests: Vec<_> = moved.objects.iter().map(Object::replace).collect();
    let start = Instant::now();
    for result in connection.apply(&requests).await {
        result?;
    }
    tables.converge.add(REQUESTS, TIME, start.elapsed().as_secs_f64());

    let moved = captured.moved_to(b).await?;
    let objects = moved.objects.clone();
    commands(b, &moved, &objects, site.leases.folder(), &mut tables.converge, BATCH).await;
    if captured.objects.iter().any(|object| matches!(object, Object::Nexthop(_))) {
        let moved = captured.moved_to(c).await?;
        let objects = moved.with_plain_routes();
        commands(c, &moved, &objects, site.leases.folder(), &mut tables.converge, PLAIN).await;
    }
    Ok(())
}

async fn read_store(leases: &Leases, peers: u32, table: &mut Table) -> Result<()> {
    let (count, took) = leases.list().await?;
    ensure!(count == peers as usize, "the store has {count} leases");
    table.add(STORE, TIME, took.as_secs_f64());
    table.add(PLAIN_READ, TIME, leases.read_plainly().await?.as_secs_f64());
    Ok(())
}

/// Our applier, with the same marks as a node's.
async fn applier(
    captured: &Captured,
    backend: &str,
    updates: u32,
    tables: &mut Tables,
) -> Result<()> {
    let testbed = testbed(1, Family::V4).await?;
    let host = testbed.host(0);
    let moved = captured.moved_to(host).await?;
    let network = network(backend, Family::V4)?.ipv4().context("the network has IPv4")?.network();
    let mut mark = Mark::new(PROTOCOL, [network.into()]);
    mark.nexthops = nexthop_ids(host.namespace(), &[network.into()], mark.table).await?;
    mark.devices.extend(moved.device.iter().map(|device| device.name.clone()));
    let start = Instant::now();
    let mut applier = Applier::open(host.namespace(), mark).await?;
    // The addresses are there already, and would be taken for stray ones.
    moved.addresses.iter().chain(&moved.objects).for_each(|object| applier.want(*object));
    let report = applier.sync().await?;
    let took = start.elapsed();
    if let Some(failure) = report.failures.first() {
        anyhow::bail!("{failure}: {}", failure.source);
    }
    ensure!(
        report.added == moved.objects.len(),
        "{} of {} added",
        report.added,
        moved.objects.len()
    );
    tables.converge.add(APPLIER, TIME, took.as_secs_f64());
    let peers = moved.by_peer();
    let peers = &peers[..peers.len().min(updates as usize)];
    updates::in_applier(&mut applier, peers, &mut tables.updates, APPLIER).await
}

/// `ip -batch`, and `bridge -batch` where there are forwarding entries.
async fn commands(
    host: &Host,
    captured: &Captured,
    objects: &[Object],
    folder: &Path,
    table: &mut Table,
    row: &str,
) {
    let (ip, bridge) = captured.batch(objects);
    let mut seconds = 0.0;
    for (tool, lines) in [("bridge", bridge), ("ip", ip)] {
        if lines.is_empty() {
            continue;
        }
        match command(host, tool, &lines, folder).await {
            Ok(took) => seconds += took,
            Err(error) => return table.trouble(row, format!("{error:#}")),
        }
    }
    table.add(row, TIME, seconds);
}

async fn command(host: &Host, tool: &str, lines: &str, folder: &Path) -> Result<f64> {
    let path = folder.join(tool);
    fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
    #[expect(clippy::disallowed_methods, reason = "the command is what is compared with")]
    let mut command = Command::new(tool);
    command.arg("-batch").arg(&path);
    let start = Instant::now();
    let mut process = host.spawn(command)?;
    let status = process.wait().await?;
    let took = start.elapsed();
    ensure!(status.success(), "{tool} -batch: {status}: {}", process.output().join("; "));
    Ok(took.as_secs_f64())
}

pub(super) const APPLIER: &str = "applier alone";
pub(super) const STORE: &str = "store read alone";
const PLAIN_READ: &str = "plain read of the store";
const REQUESTS: &str = "requests alone, no picture";
const BATCH: &str = "ip -batch, same objects";
const PLAIN: &str = "ip -batch, plain routes";
