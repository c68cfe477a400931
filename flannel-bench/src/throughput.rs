//! Pod to pod over two hosts: bandwidth, packets, round trips, and what they cost.

mod forwarder;
mod kernel;
mod offloads;
mod paths;
mod udp;
mod wireguard;

use std::{fmt, process};

use anyhow::{Context, Result};
use flannel_testbed::{Pod, probe::tcp_throughput};

use self::paths::Path;
use crate::{
    args::{Family, Offloads, Throughput},
    proc,
    report::Table,
    session::Session,
    stats::percentile,
    unit::Unit,
};

pub(crate) async fn run(session: &Session, options: &Throughput) -> Result<Vec<Table>> {
    let columns = [
        (TCP, Unit::BitsPerSecond),
        (CPU, Unit::CpuSecondsPerGigabyte),
        (OWN_CPU, Unit::CpuSecondsPerGigabyte),
        (PACKETS, Unit::PerSecond),
        (RTT_50, Unit::Seconds),
        (RTT_99, Unit::Seconds),
    ];
    let mut tables = Vec::new();
    for &family in &options.family {
        for &offloads in &options.offloads {
            let case = Case { family, offloads };
            tables.push((case, Table::new(format!("pod to pod{case}"), &columns)));
        }
    }
    let paths = Path::all(session, &options.only);
    for path in &paths {
        if let Some(missing) = path.missing() {
            let skip = |(_, table): &mut (Case, Table)| {
                table.trouble(&path.name, format!("skipped: {missing}"));
            };
            tables.iter_mut().for_each(skip);
        }
    }
    for run in session.runs() {
        for (case, table) in &mut tables {
            for path in paths.iter().filter(|path| path.missing().is_none()) {
                session.progress(run, format!("{}{case}", path.name));
                let measured = measure(session, options, path, *case, table);
                if let Err(error) = measured.await {
                    table.trouble(&path.name, format!("run {run}: {error:#}"));
                }
            }
        }
    }
    for (_, table) in &mut tables {
        table.compare("TCP of raw", TCP, &[paths::RAW]);
        table.compare("UDP of raw", PACKETS, &[paths::RAW]);
        table.compare("TCP of hand-made vxlan", TCP, &[paths::VXLAN]);
        table.compare("UDP of hand-made vxlan", PACKETS, &[paths::VXLAN]);
    }
    Ok(tables.into_iter().map(|(_, table)| table).collect())
}

/// What a table is about.
#[derive(Clone, Copy, Debug)]
struct Case {
    family: Family,
    offloads: Offloads,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.family {
            Family::V4 => "",
            Family::V6 => ", IPv6",
        })?;
        f.write_str(match self.offloads {
            Offloads::Off => ", no offloads",
            Offloads::On => "",
        })
    }
}

async fn measure(
    session: &Session,
    options: &Throughput,
    path: &Path<'_>,
    case: Case,
    table: &mut Table,
) -> Result<()> {
    let row = &path.name;
    let built = path.build(session, case.family).await?;
    if case.offloads == Offloads::Off {
        offloads::turn_off(&built).await?;
    }
    let [a, b] = &built.pods;
    warm(a, b).await?;

    let round_trips = udp::round_trips(a, b, options.round_trips).await?;
    for (column, percent) in [(RTT_50, 50.0), (RTT_99, 99.0)] {
        if let Some(time) = percentile(&round_trips, percent) {
            table.add(row, column, time);
        }
    }

    let (machine, own) = (proc::machine_busy()?, proc::cpu_time(process::id())?);
    let went = tcp_throughput(a, b, options.duration).await?;
    let (machine, own) = (proc::machine_busy()? - machine, proc::cpu_time(process::id())? - own);
    let gigabytes = went.bytes as f64 / 1e9;
    table.add(row, TCP, went.bits_per_second());
    table.add(row, CPU, machine.as_secs_f64() / gigabytes);
    table.add(row, OWN_CPU, own.as_secs_f64() / gigabytes);

    let received = udp::flood(a, b, options.duration).await?;
    table.add(row, PACKETS, received);

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
