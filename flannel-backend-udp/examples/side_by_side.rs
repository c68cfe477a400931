//! What the userspace engine carries beside a plain forwarder, in one run: `side_by_side [RUNS] [SECONDS]`, as root.

#[path = "../tests/tun/plain.rs"]
mod plain;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use flannel_backend::{UplinkFinder, UplinkOptions};
use flannel_backend_udp::Udp;
use flannel_core::{Backend, Lease, LeaseEvent, Network, NetworkConfig, Peers};
use flannel_testbed::{Blocks, Pod, Testbed, probe};
use plain::Plain;
use tokio::{task::spawn_blocking, time::Instant};

type Failure = Box<dyn std::error::Error>;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Raw,
    Plain,
    Ours(usize),
}

struct Built {
    pods: [Pod; 2],
    backends: Vec<Udp>,
    networks: Vec<Box<dyn Network>>,
    plain: Vec<Plain>,
    _testbed: Testbed,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let runs = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let seconds = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let kinds: Vec<Kind> = match std::env::var("KINDS") {
        Ok(kinds) => kinds
            .split(',')
            .map(|kind| match kind {
                "raw" => Kind::Raw,
                "plain" => Kind::Plain,
                kind => Kind::Ours(kind.parse().expect("a number of workers")),
            })
            .collect(),
        Err(_) => vec![Kind::Raw, Kind::Plain, Kind::Ours(1), Kind::Ours(2)],
    };
    let mut rows: Vec<[Vec<f64>; 4]> = kinds.iter().map(|_| Default::default()).collect();
    for _ in 0..runs {
        for (kind, row) in kinds.iter().zip(&mut rows) {
            let built = build(*kind).await?;
            let [a, b] = &built.pods;
            a.ping(b.ip()).await?;
            let before = cpu();
            let tcp = probe::tcp_throughput(a, b, Duration::from_secs(seconds)).await?;
            let used = cpu() - before;
            row[0].push(tcp.bits_per_second() / 1e9);
            row[1].push(used / (tcp.bytes as f64 / 1e9));
            row[2].push(flood(a, b, Duration::from_secs(seconds)).await? / 1e3);
            row[3].push(round_trips(a, b, 3000).await? * 1e6);
            for backend in &built.backends {
                let stats = backend.stats();
                eprintln!(
                    "{kind:?} sent {:?} received {:?} dropped {:?}",
                    stats.sent,
                    stats.received,
                    stats.drops().filter(|(_, n)| *n > 0).collect::<Vec<_>>()
                );
            }
            for network in built.networks {
                network.teardown().await?;
            }
            drop(built.plain);
        }
    }
    println!(
        "| forwarder | TCP, Gbit/s | CPU, s/GB | 64-byte UDP, kpps | round trip, us |\n| --- | --- | --- | --- | --- |"
    );
    for (kind, row) in kinds.iter().zip(&mut rows) {
        let shown: Vec<_> = row.iter_mut().map(|values| median(values)).collect();
        println!("| {kind:?} | {} |", shown.join(" | "));
    }
    Ok(())
}

async fn build(kind: Kind) -> Result<Built, Failure> {
    let testbed = Testbed::new(2).await?;
    let config: NetworkConfig =
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Engine":"userspace"}}"#.parse()?;
    let blocks: [Blocks; 2] = ["10.244.1.0/24".parse()?, "10.244.2.0/24".parse()?];
    let [a, b] = testbed.hosts() else { unreachable!("there are two") };
    let mtu = if matches!(kind, Kind::Raw) { 1500 } else { 1472 };
    let pods =
        [a.add_pod_with_mtu(blocks[0], mtu).await?, b.add_pod_with_mtu(blocks[1], mtu).await?];
    let (mut backends, mut networks, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    match kind {
        Kind::Raw => {
            a.add_route(blocks[1], b).await?;
            b.add_route(blocks[0], a).await?;
        }
        Kind::Plain => {
            for (own, other, n) in [(a, b, 1), (b, a, 2)] {
                let block = |n: u8| ipnetwork::Ipv4Network::new([10, 244, n, 0].into(), 24);
                let peers = vec![(block(3 - n)?, other.ipv4().ok_or("no IPv4")?)];
                plain.push(Plain::start(own, block(n)?, peers, 1500).await);
            }
        }
        Kind::Ours(workers) => {
            let mut leases = Vec::new();
            for (n, host) in [a, b].into_iter().enumerate() {
                let options =
                    UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
                let finder = UplinkFinder::new(host.namespace(), &config, &options)?;
                let workers = NonZeroUsize::new(workers).ok_or("no workers")?;
                let backend = Udp::new(&config, finder)?.with_workers(workers);
                let subnet = format!("10.244.{}.0-24", n + 1).parse()?;
                leases.push(Lease::new(subnet, backend.advertise(None).await?));
                backends.push(backend);
            }
            for (n, backend) in backends.iter().enumerate() {
                let mut network = backend.start(&leases[n]).await?;
                let mut peers = Peers::new(config.clone(), leases[n].clone());
                peers.fold(LeaseEvent::Reset(leases.clone()));
                network.sync(&peers).await?;
                networks.push(network);
            }
        }
    }
    Ok(Built { pods, backends, networks, plain, _testbed: testbed })
}

/// What this process has used, seconds: the forwarders, both ends, and what the kernel does in their names.
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // utime and stime are the 14th and 15th; the state, a letter, is left out. In hundredths.
    fields.get(10..12).map_or(0.0, |ticks| ticks.iter().sum::<u64>() as f64 / 100.0)
}

async fn flood(from: &Pod, to: &Pod, duration: Duration) -> Result<f64, Failure> {
    let (sender, receiver) = pair(from, to)?;
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let counting = spawn_blocking(move || {
        let (mut buffer, mut received) = ([0; 64], 0_u64);
        while !stop.load(Ordering::Relaxed) {
            received += u64::from(receiver.recv(&mut buffer).is_ok());
        }
        received
    });
    let sending = spawn_blocking(move || {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            for _ in 0..32 {
                let _ = sender.send(&[0x5a; 64]);
            }
        }
    });
    sending.await?;
    done.store(true, Ordering::Relaxed);
    Ok(counting.await? as f64 / duration.as_secs_f64())
}

async fn round_trips(from: &Pod, to: &Pod, number: usize) -> Result<f64, Failure> {
    let (sender, receiver) = pair(from, to)?;
    let echo = spawn_blocking(move || {
        let mut buffer = [0; 64];
        for _ in 0..number {
            let Ok((len, from)) = receiver.recv_from(&mut buffer) else { return };
            let _ = receiver.send_to(&buffer[..len], from);
        }
    });
    let timed = spawn_blocking(move || {
        let (mut buffer, mut times) = ([0; 64], Vec::new());
        for _ in 0..number {
            let start = Instant::now();
            let _ = sender.send(&buffer);
            if sender.recv(&mut buffer).is_ok() {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    });
    let (timed, _) = tokio::join!(timed, echo);
    Ok(timed?)
}

fn pair(from: &Pod, to: &Pod) -> Result<(UdpSocket, UdpSocket), Failure> {
    let open = |pod: &Pod, address: SocketAddr| -> Result<UdpSocket, Failure> {
        let socket = pod.namespace().run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    };
    let receiver = open(to, SocketAddr::new(to.ip(), 0))?;
    let sender = open(from, (Ipv4Addr::UNSPECIFIED, 0).into())?;
    sender.connect(receiver.local_addr()?)?;
    Ok((sender, receiver))
}

/// The median with the smallest and the largest.
fn median(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else { return String::new() };
    format!("{:.2} ({low:.2}-{high:.2})", values[values.len() / 2])
}
