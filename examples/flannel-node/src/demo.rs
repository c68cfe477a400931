//! `flannel-node demo`: a cluster of real nodes in network namespaces, shown while it comes up, damaged and repaired.

mod cluster;

use std::{process, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use flannel_testbed::{capable, enter_user_namespace, probe};
use tokio::{
    signal::ctrl_c,
    time::{Instant, sleep, timeout},
};

use crate::{args::DemoArgs, output::say};
use cluster::Cluster;

/// Runs the demo. Has to be called before the process has a second thread.
pub(crate) fn main(args: &DemoArgs) -> Result<()> {
    if !capable() {
        enter_user_namespace().context("the demo needs network namespaces")?;
    }
    let runtime = crate::runtime()?;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = demo(args) => ended,
            _ = ctrl_c(), if !args.keep => bail!("interrupted"),
        }
    });
    say!("the cluster is gone");
    ended
}

async fn demo(args: &DemoArgs) -> Result<()> {
    say!("{} hosts on one switch, one flannel-node each, backend {}", args.hosts, args.backend);
    let mut cluster = Cluster::build(args.hosts, &args.backend).await?;
    let result = show(&mut cluster).await;
    if let Err(error) = result {
        cluster.print_logs();
        return Err(error);
    }
    if args.keep {
        keep(&cluster).await?;
    }
    Ok(())
}

async fn show(cluster: &mut Cluster) -> Result<()> {
    cluster.start_nodes().await?;

    say!("\nleases:");
    for (name, lease) in cluster.leases()? {
        say!("  {name:16} {lease}");
    }
    say!("\nroutes of {}:", cluster.host(0).name());
    for (route, gateway) in cluster.routes(0).await? {
        say!("  {} via {gateway}", route.destination);
    }

    say!("\npods:");
    let reachability = cluster.reachability().await;
    say!("{reachability}");
    ensure!(reachability.complete(), "not all pods reach each other");

    repair(cluster).await?;

    let reachability = cluster.reachability().await;
    say!("{} of {} pairs reach each other", reachability.reached(), reachability.probed());
    ensure!(reachability.complete(), "not all pods reach each other after the repair");
    say!("\nresident memory of the nodes: {}", cluster.memory()?);
    Ok(())
}

/// Deletes a route and waits until it is back.
async fn repair(cluster: &Cluster) -> Result<()> {
    let (host, peer) = (cluster.host(0), cluster.host(1));
    let (from, to) = (cluster.pod(0), cluster.pod(1));
    say!("\ndeleting the route of {} to {}", host.name(), cluster.subnet(1));
    let stream = probe::stream(from, to.ip(), RATE)?;
    stream.flowing().await;
    let start = Instant::now();
    let deleted = host.delete_route(cluster.subnet(1)).await?;
    ensure!(deleted > 0, "{} had no route to {}", host.name(), peer.name());
    let back = async {
        while !cluster.has_route(0, 1).await? {
            sleep(Duration::from_millis(1)).await;
        }
        anyhow::Ok(start.elapsed())
    };
    let back = timeout(REPAIR, back);
    let back = back.await.with_context(|| format!("the route was not back after {REPAIR:?}"))??;
    stream.flowing().await;
    let probes = stream.stop().await;
    say!("the route was back after {:.1} ms", back.as_secs_f64() * 1e3);
    say!("{RATE} probes a second meanwhile: {probes}");
    Ok(())
}

async fn keep(cluster: &Cluster) -> Result<()> {
    say!("\nthe cluster stays until Ctrl-C; to look around in it:");
    let user = if capable_outside() { "" } else { " --user --preserve-credentials" };
    for (name, pid) in cluster.processes() {
        say!("  {name}: nsenter --target {pid}{user} --net");
    }
    say!("  leases: {}", cluster.folder().display());
    ctrl_c().await.context("cannot wait for Ctrl-C")
}

/// Whether this process is in the user namespace that its parent is in.
fn capable_outside() -> bool {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    namespace(&process::id().to_string())
        == namespace(&std::os::unix::process::parent_id().to_string())
}

/// Probes a second while a route is away.
const RATE: u32 = 1000;

/// What a repair may take.
const REPAIR: Duration = Duration::from_secs(1);
