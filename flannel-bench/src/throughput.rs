//! Pod to pod over two hosts: bandwidth, packets, round trips, and what they cost.

mod paths;
mod udp;

use std::process;

use anyhow::{Context, Result};
use flannel_testbed::{Pod, probe::tcp_throughput};

use self::paths::Path;
use crate::{
    args::Throughput, proc, report::Table, session::Session, stats::percentile, unit::Unit,
};

pub(crate) async fn run(session: &Session, options: &Throughput) -> Result<Vec<Table>> {
    let mut table = Table::new(
        "pod to pod",
        &[
            (TCP, Unit::BitsPerSecond),
            (CPU, Unit::CpuSecondsPerGigabyte),
            (OWN_CPU, Unit::CpuSecondsPerGigabyte),
            (PACKETS, Unit::PerSecond),
            (RTT_50, Unit::Seconds),
            (RTT_99, Unit::Seconds),
        ],
    );
    for run in session.runs() {
        for path in Path::all(session) {
            let row = path.name();
            session.progress(run, &row);
            if let Err(error) = measure(session, options, &path, &mut table, &row).await {
                table.trouble(&row, format!("run {run}: {error:#}"));
            }
        }
    }
    table.compare("TCP of raw", TCP, &[paths::RAW]);
    table.compare("UDP of raw", PACKETS, &[paths::RAW]);
    table.compare("TCP of hand-made vxlan", TCP, &[paths::VXLAN]);
    table.compare("UDP of hand-made vxlan", PACKETS, &[paths::VXLAN]);
    Ok(vec![table])
}

async fn measure(
    session: &Session,
    options: &Throughput,
    path: &Path<'_>,
    table: &mut Table,
    row: &str,
) -> Result<()> {
    let built = path.build(session).await?;
    let [a, b] = &built.pods;
    warm(a, b).await?;

    let (machine, own) = (proc::machine_busy()?, proc::cpu_time(process::id())?);
    let went = tcp_throughput(a, b, options.duration).await?;
    let (machine, own) = (proc::machine_busy()? - machine, proc::cpu_time(process::id())? - own);
    let gigabytes = went.bytes as f64 / 1e9;
    table.add(row, TCP, went.bits_per_second());
    table.add(row, CPU, machine.as_secs_f64() / gigabytes);
    table.add(row, OWN_CPU, own.as_secs_f64() / gigabytes);

    let received = udp::flood(a, b, options.duration).await?;
    table.add(row, PACKETS, received);

    let round_trips = udp::round_trips(a, b, options.round_trips).await?;
    for (column, percent) in [(RTT_50, 50.0), (RTT_99, 99.0)] {
        if let Some(time) = percentile(&round_trips, percent) {
            table.add(row, column, time);
        }
    }
    built.stop().await
}

/// The first packets wait for neighbours to be resolved, and for a node to hear of its peer.
async fn warm(a: &Pod, b: &Pod) -> Result<()> {
    let mut last = None;
    for _ in 0..WARM_PINGS {
        match a.ping(b.ip()).await {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no ping was sent")?.into())
}

/// A lost ping takes a second.
const WARM_PINGS: u32 = 10;

const TCP: &str = "TCP, 1 stream";
const CPU: &str = "cpu s/GB, machine";
const OWN_CPU: &str = "cpu s/GB, both ends";
const PACKETS: &str = "64-byte UDP received";
const RTT_50: &str = "RTT p50";
const RTT_99: &str = "RTT p99";
