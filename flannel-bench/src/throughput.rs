//! Between two hosts or pods behind them: bandwidth, packets, round trips, and what they cost.

mod forwarder;
mod kernel;
mod masquerading;
mod offloads;
mod paths;
mod udp;
mod wireguard;

use std::{fmt, process};

use anyhow::{Context, Result};
use flannel_testbed::{Endpoint, probe::tcp_throughput};
use futures::future::try_join_all;

use self::paths::Path;
use crate::{
    args::{Between, Family, Offloads, Throughput},
    proc,
    report::Table,
    session::Session,
    stats::percentile,
    unit::Unit,
};

pub(crate) async fn run(session: &Session, options: &Throughput) -> Result<Vec<Table>> {
    let columns = [
        (TCP, Unit::BitsPerSecond),
        (TCP_4, Unit::BitsPerSecond),
        (CPU, Unit::CpuSecondsPerGigabyte),
        (OWN_CPU, Unit::CpuSecondsPerGigabyte),
        (PACKETS, Unit::PerSecond),
        (RTT_50, Unit::Seconds),
        (RTT_99, Unit::Seconds),
    ];
    let mut tables = Vec::new();
    for &between in &options.between {
        for &family in &options.family {
            for &offloads in &options.offloads {
                let case = Case { between, family, offloads };
                tables.push((case, Table::new(case.to_string(), &columns)));
            }
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
                session.progress(run, format!("{}, {case}", path.name));
                let measured = measure(session, options, path, *case, table);
                if let Err(error) = measured.await {
                    table.trouble(&path.name, format!("run {run}: {error:#}"));
                }
            }
        }
    }
    for (_, table) in &mut tables {
        table.compare("TCP of raw", TCP, &[paths::RAW]);
        table.compare("4 of raw", TCP_4, &[paths::RAW]);
        table.compare("UDP of raw", PACKETS, &[paths::RAW]);
        table.compare("TCP of hand-made vxlan", TCP, &[paths::VXLAN]);
        table.compare("4 of hand-made vxlan", TCP_4, &[paths::VXLAN]);
        table.compare("UDP of hand-made vxlan", PACKETS, &[paths::VXLAN]);
        table.compare("TCP of forwarder", TCP, &[paths::FORWARDER]);
        table.compare("cpu/GB of forwarder", CPU, &[paths::FORWARDER]);
        table.compare("UDP of forwarder", PACKETS, &[paths::FORWARDER]);
        table.compare("TCP of wireguard-go", TCP, &[paths::WIREGUARD_GO]);
        table.compare("4 of wireguard-go", TCP_4, &[paths::WIREGUARD_GO]);
        table.compare("cpu/GB of wireguard-go", CPU, &[paths::WIREGUARD_GO]);
        table.compare("UDP of wireguard-go", PACKETS, &[paths::WIREGUARD_GO]);
    }
    Ok(tables.into_iter().map(|(_, table)| table).collect())
}

/// What a table is about.
#[derive(Clone, Copy, Debug)]
struct Case {
    between: Between,
    family: Family,
    offloads: Offloads,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.between {
            Between::Hosts => "host to host",
            Between::Masqueraded => "pod to pod, masqueraded",
            Between::Pods => "pod to pod",
        })?;
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
    if case.between == Between::Masqueraded {
        masquerading::turn_on(&built.hosts()[0])?;
    }
    let [a, b] = &built.ends(case.between);
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

    let streams = (0..STREAMS).map(|_| tcp_throughput(a, b, options.duration));
    let went = try_join_all(streams).await?;
    table.add(row, TCP_4, went.iter().map(|stream| stream.bits_per_second()).sum());

    let received = udp::flood(a, b, options.duration).await?;
    table.add(row, PACKETS, received);

    built.stop().await
}

/// The first packets wait for neighbours to be resolved, and for a node to hear of its peer.
async fn warm(a: &Endpoint, b: &Endpoint) -> Result<()> {
    let mut last = None;
    for _ in 0..WARM_ROUNDS {
        match udp::round_trips(a, b, 1).await {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("nothing was sent")?.context("no packet gets through"))
}

/// At once.
const STREAMS: usize = 4;
/// Each takes some seconds if nothing comes back.
const WARM_ROUNDS: u32 = 5;

const TCP: &str = "TCP, 1 stream";
const TCP_4: &str = "TCP, 4 streams";
const CPU: &str = "cpu s/GB, machine";
const OWN_CPU: &str = "cpu s/GB, both ends";
const PACKETS: &str = "64-byte UDP received";
const RTT_50: &str = "RTT p50";
const RTT_99: &str = "RTT p99";
